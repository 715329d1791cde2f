"""What the programs share: configuration, run folders, tables, reports."""
