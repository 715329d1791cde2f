"""The errors a user may see. Each message says who, the numbers, and the way out."""


class CompressError(Exception):
    """Anything the user can put right; scripts print it without a traceback."""


class BadInput(CompressError):
    """A path, file, data set or setting that cannot be used."""


class UnsupportedScheme(CompressError):
    """A quantisation, sparsity or pruning request that no runtime or no layer can take."""


class UnsupportedModel(CompressError):
    """A model whose structure this library does not handle."""


class ExportMismatch(CompressError):
    """The exported file is not what was trained; nothing was put under the final name."""


def did_you_mean(word: str, known: "list[str] | tuple[str, ...]") -> str:
    """' Did you mean X?' for the nearest of `known`, or an empty string.

    >>> did_you_mean("tempreature", ["temperature", "weight"])
    " Did you mean 'temperature'?"
    """
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
