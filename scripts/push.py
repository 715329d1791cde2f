"""Send an exported folder to the Hugging Face hub: `python scripts/push.py path=DIR repo=OWNER/NAME`."""  # noqa: E501

import sys

HELP = """\
Send an exported folder, with its model card, to the Hugging Face hub.

  python scripts/push.py path=runs/.../export/vllm repo=OWNER/NAME [private=false] [revision=BRANCH]

Log in first: hf auth login. A repository that does not exist is made, private unless you say so;
one that does stays as it is, and private=true refuses one that is public. Weight files of an
earlier export that this one does not have are taken out of it in the same commit.
"""

KEYS = ("path", "repo", "private", "revision")


def main(words: list[str] | None = None) -> int:
    """Answers the exit status: 0 done, 2 bad input."""
    from compress.errors import BadInput, CompressError, did_you_mean
    from compress.export.hub import push_to_hub

    words = sys.argv[1:] if words is None else words
    if not words or any(word in ("-h", "--help") for word in words):
        print(HELP, end="")
        return 0
    said = dict(word.partition("=")[::2] for word in words)
    try:
        for key in said:
            if key not in KEYS:
                raise BadInput(f"there is no setting {key!r}.{did_you_mean(key, KEYS)}")
        if not said.get("path") or not said.get("repo"):
            raise BadInput("give path=DIR and repo=OWNER/NAME")
        private = {"true": True, "false": False}.get(said["private"]) if "private" in said else None
        if "private" in said and private is None:
            raise BadInput(f"private={said['private']}: true or false is expected")
        revision = said.get("revision") or None
        print(push_to_hub(said["path"], said["repo"], private=private, revision=revision))
    except CompressError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
