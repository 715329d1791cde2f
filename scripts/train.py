"""Train, compress and export one model: `python scripts/train.py recipe=distill_qat`."""

import sys

HELP = """\
Train, compress and export one model.

  python scripts/train.py recipe=distill_qat [key=value ...]

Often used:
  recipe=NAME                  what to do; `recipe=` lists all
  run_dir=PATH                 where everything of this run goes (default: runs/<recipe>/<time>)
  seed=0  ckpt=last  compare=true  verbose=false
  data=text data.path=FILES    your own text (also: hub, instruction, classification,
                               sentences for task=embedding)
  teacher=hf teacher.path=P    any Hugging Face causal LM (name or folder)
  student.layers=3             student=from_teacher | hf | same
  callbacks.NAME.SETTING=V     e.g. callbacks.qat.scheme=W4A16 callbacks.qat.group_size=32
  ~callbacks.NAME              leave one out
  trainer=cpu|gpu|ddp  trainer.max_steps=300  trainer.batch_size=16
  logger=wandb|csv|none  target=vllm  export_dtype=bfloat16
  --config                     print the whole configuration and stop
  --completion                 completion for bash and zsh: eval "$(compress-train --completion)"
"""


def main(words: list[str] | None = None) -> int:
    """Runs one recipe; answers the exit status (0 done, 2 bad input, 130 interrupted)."""
    words = sys.argv[1:] if words is None else words
    from compress.errors import CompressError
    from compress.scripts.lib.config import list_recipes
    from compress.scripts.lib.launch import record, speaks

    if words[:1] == ["--completion"] or words[:1] == ["--complete"]:
        from compress.scripts.lib.completion import BASH, candidates

        if words[0] == "--completion":
            print(BASH, end="")
        for word in candidates("".join(words[1:2]), words[2:]) if words[0] == "--complete" else ():
            print(word)
        return 0
    if any(word in ("-h", "--help") for word in words):
        print(HELP + "\nRecipes:\n" + _listed(list_recipes()))
        return 0
    if "recipe=" in words:
        print(_listed(list_recipes()))
        return 0
    try:
        return _run([w for w in words if w != "--config"], show="--config" in words)
    except CompressError as error:
        record(error)
        if speaks():
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        record(error)
        raise
    except KeyboardInterrupt:
        print("Stopped. Go on with the same command and ckpt=last.", file=sys.stderr)
        return 130


def _run(words: list[str], *, show: bool) -> int:
    from compress.scripts.lib.checks import check_paths
    from compress.scripts.lib.config import compose
    from compress.scripts.lib.launch import launch, rank_here, ranks_to_start
    from compress.scripts.lib.precision import settle_precision
    from compress.scripts.lib.resume import refuse_other_training
    from compress.scripts.lib.run_folder import choose_folder

    config = compose(words)
    if show:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(config, resolve=True), end="")
        return 0
    check_paths(config)
    recipe = next((w.split("=", 1)[1] for w in words if w.startswith("recipe=")), "distill_qat")
    ranks = ranks_to_start(config.trainer)
    path, _ = choose_folder(config, recipe)
    if rank_here() == 0:  # it may have begun to write there
        refuse_other_training(config, path)
    if ranks:
        return launch(words, ranks=ranks, run_dir=path, module="compress.scripts.train")
    settle_precision(config, recorded=path / "config.yaml")
    if "cache" in config:
        from compress.scripts.lib.cache_teacher import cache_teacher

        cache_teacher(config, words)
        return 0
    from compress.scripts.lib.run import run  # heavy: only once the configuration is sound

    run(config, words, recipe=recipe)
    return 0


def _listed(recipes: dict[str, str]) -> str:
    return "\n".join(f"  {name:24} {purpose}" for name, purpose in recipes.items())


if __name__ == "__main__":
    sys.exit(main())
