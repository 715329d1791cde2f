"""One run from configuration to report: data, teacher, student, training, export, comparison."""

import sys
import time
import traceback
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from compress.errors import BadInput, CompressError
from compress.evaluate.classify import classification_accuracy
from compress.evaluate.samples import sample_texts
from compress.export.card import CardFacts
from compress.export.write import export
from compress.models import config_of
from compress.scripts.lib import build, hosts, launch, loggers, tasks, trainer
from compress.scripts.lib.checkpoints import StoppedBySignal
from compress.scripts.lib.facts import (
    environment,
    layer_facts,
    provenance,
    reproduce,
    stored_bytes,
    teacher_bytes,
)
from compress.scripts.lib.html_report import write_html
from compress.scripts.lib.progress import announced, quiet_libraries
from compress.scripts.lib.rehearsal import rehearse
from compress.scripts.lib.resume import resume_path
from compress.scripts.lib.run_folder import (
    RunFolder,
    choose_folder,
    read_json,
    read_report,
    write_atomically,
    write_json,
)
from compress.scripts.lib.run_start import BeforeTraining, refuse_teacherless
from compress.scripts.lib.secrets import masked, masked_text, masked_words
from compress.scripts.lib.tables import first_table, last_table

PROMPTS = ["import os\n\ndef ", "class Stack:\n    def __init__(self", "for i in range("]


def run(config: DictConfig, words: list[str], *, recipe: str) -> dict[str, Any]:
    """The whole run; answers what report.json holds.

    Raises:
        CompressError: anything the user can put right; report.json then says `failed` and why.
    """
    quiet_libraries()
    path, resuming = choose_folder(config, recipe)
    folder = RunFolder(path, resuming=resuming) if rank_zero_only.rank == 0 else None
    state = Run(config, words, recipe=recipe, path=path, resuming=resuming)
    try:
        state.execute()
        state.report["status"] = "finished"
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | StoppedBySignal)
        state.report["status"] = "interrupted" if stopped else "failed"
        state.report["error"] = masked_text(str(error)) or type(error).__name__
        if folder is not None and not state.leaves_as_it_was():
            told = stopped or isinstance(error, CompressError)
            leave_report(state, trace=None if told else masked_text(traceback.format_exc()))
        if folder is not None:
            folder.release()
        raise
    if folder is not None:
        try:
            state.save()
        finally:
            folder.release()
    return state.report


def leave_report(state: "Run", *, trace: str | None) -> None:
    """The report of a run that failed; what hinders it is said, and hides no first error."""
    try:
        if trace is not None:
            write_atomically(state.path / "traceback.txt", trace)
        state.save()
    except Exception as error:
        print(f"{state.path}: the report cannot be written: {error}", file=sys.stderr)


class Run:
    """The phases of one run and the report they fill."""

    def __init__(
        self, config: DictConfig, words: list[str], *, recipe: str, path: Path, resuming: bool
    ) -> None:
        """Nothing is built yet."""
        self.config, self.path, self.resuming, self.begun = config, path, resuming, False
        self.quality: dict[str, Any] = tasks.measure_of(config.task)
        self.seconds: dict[str, float] = {}
        self.dense_texts: list[str] = []
        self.report: dict[str, Any] = {
            "schema": 1,
            "recipe": recipe,
            "status": "running",
            "command": reproduce(masked_words(words), "scripts/train.py"),
            "environment": environment(),
            "asked": masked(OmegaConf.to_container(config, resolve=True)),
            "seconds": self.seconds,
            "quality": self.quality,
            "exports": [],
            "notes": [],
        }

    def execute(self) -> None:
        """Every phase, in order."""
        L.seed_everything(self.config.seed, verbose=False)
        if not (self.path / "config.yaml").exists():
            self.begin()
        with self.timed("data"):
            self.data = build.build_data(self.config, build.build_tokenizer(self.config))
        rehearse(self.config, self.data)
        with self.timed("teacher"):
            metrics = self.path / "metrics.jsonl"
            self.folder = build.teacher_folder(self.config, self.data, metrics=metrics)
            self.teacher_model = build.build_teacher_model(self.config, self.folder)
            student = self.new_student()
            self.teacher = hosts.build_teacher(
                self.config, folder=self.folder, model=self.teacher_model,
                vocab_size=int(config_of(student).vocab_size), data=self.data,
            )  # fmt: skip
        build.check_pair(self.teacher_modules, student, self.data.tokenizer)
        if self.leads:
            self.measure_before(student)
        module = self.train_student(student)
        self.quality["compressed"] = self.loss_of(module.student)
        if self.config.task == "classification" and self.leads:
            self.quality["accuracy"] = self.accuracies(module.student)
        if self.config.task == "embedding" and self.leads:
            self.quality["agreement"] = self.agreement(module.student)
        if launch.several_ranks():
            # before the ranks part: the export's libraries work together wherever they can
            self.compare()
            launch.part_ranks()
        if self.leads:
            if self.config.target is not None:
                self.export_student(module.student)
            if "compare" not in self.quality:
                self.compare()
            self.finish(module.student)

    def begin(self) -> None:
        """From here on the folder tells of this run: at once, or when a checkpoint is restored."""
        if self.leads and not self.begun:
            text = OmegaConf.to_yaml(OmegaConf.create(self.report["asked"]))
            write_atomically(self.path / "config.yaml", text)
            write_json(self.path / "report.json", self.report)
        self.begun = True

    def leaves_as_it_was(self) -> bool:
        """Whether a finished run lies here that could not be gone on with: its report stays."""
        with suppress(BadInput):
            return not self.begun and read_report(self.path).get("status") == "finished"
        return False

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone measures, writes and exports."""
        return bool(rank_zero_only.rank == 0)

    @property
    def teacher_modules(self) -> torch.nn.Module | None:
        """The teacher, or its modules without weights where it is not whole in this process."""
        return self.teacher_model or getattr(self.teacher, "skeleton", None)

    def new_student(self) -> torch.nn.Module:
        """The student as it starts, the same each time."""
        student = build.build_student(self.config, self.teacher_model, self.folder)
        build.name_classes(self.config, student, self.data)
        return student

    def measure_before(self, student: torch.nn.Module) -> None:
        """Losses and bytes of the teacher and of the dense student."""
        self.report["size"] = {"dense_bytes": stored_bytes(student)}
        if self.teacher_modules is not None:
            given = self.folder if self.config.teacher.kind == "hf" else None
            held = teacher_bytes(self.teacher_modules, checkpoint=given)
            self.report["size"]["teacher_bytes"] = held
        if self.teacher_model is not None:
            self.quality["teacher"] = self.loss_of(self.teacher_model)
        if self.config.task == "embedding" and self.teacher_model is not None:
            widths = {config_of(m).hidden_size for m in (student, self.teacher_model)}
            self.quality["unit"] = tasks.EMBEDDING_UNITS[len(widths) == 1]
        self.quality["start"] = self.loss_of(student)
        if self.config.verbose:
            first_table(self.config, data=self.data, teacher=self.teacher_modules, student=student)

    def loss_of(self, model: torch.nn.Module) -> float:
        """What `quality.metric` says, on the validation batches that all models share."""
        batches = trainer.validation_batches(self.data, self.config.trainer)
        return tasks.loss_of(self.config.task, model, batches, teacher=self.teacher)

    def agreement(self, student: torch.nn.Module) -> dict[str, float]:
        """How the student embeds and ranks the validation sequences beside the teacher."""
        batches = trainer.validation_batches(self.data, self.config.trainer)
        return tasks.agreement_of(student, self.teacher_model, batches)

    def accuracies(self, student: torch.nn.Module) -> dict[str, float]:
        """Share of validation examples that teacher and student put into their class."""
        models = {"teacher": self.teacher_model, "compressed": student}
        batches = trainer.validation_batches(self.data, self.config.trainer)
        return {
            who: classification_accuracy(model, batches()).accuracy
            for who, model in models.items()
            if model is not None
        }

    def train_student(self, student: torch.nn.Module) -> Any:
        """The compressed run itself, with checkpoints and loggers."""
        checkpoints = self.path / "checkpoints"
        ckpt = resume_path(self.config.ckpt, checkpoints) if self.resuming else None
        if self.resuming and ckpt is None and self.leads:
            trainer.forget_later_steps(self.path / "metrics.jsonl", phase="train", after=-1)
        callbacks = build.build_callbacks(self.config)
        refuse_teacherless(callbacks, self.teacher)
        watch = [BeforeTraining(self), *self.watch_teacher()]
        with self.timed("train"):
            module = trainer.train(
                student=student, teacher=self.teacher, data=self.data, trainer=self.config.trainer,
                training=self.config.training, callbacks=[*callbacks, *watch],
                loggers=loggers.build_loggers(
                    self.config, self.path, resumed_from=ckpt if self.leads else None
                ),
                seed=self.config.seed, task=self.config.task, verbose=self.config.verbose,
                checkpoints=checkpoints, ckpt_path=ckpt,
            )  # fmt: skip
        self.begin()
        if self.config.trainer.max_steps == 0:  # there was no first step to measure it before
            self.keep_at_start("start_ptq", self.loss_of(module.student) if self.leads else None)
        self.quality.update(read_json(self.path / "start.json", {}))
        for callback in callbacks:
            module.student = getattr(callback, "finalise", lambda model: model)(module.student)
        self.report["layers"] = layer_facts(module.student)
        for callback in callbacks:
            facts = getattr(callback, "report", dict)()
            self.report.update(facts)
        return module

    def watch_teacher(self) -> list[L.Callback]:
        """What a teacher elsewhere is asked before the first step."""
        if self.teacher is None or self.teacher_model is not None:
            return []
        batches = trainer.validation_batches(self.data, self.config.trainer)
        keep = partial(self.keep_at_start, "teacher")
        return [hosts.TeacherReady(self.teacher, batches, keep=keep)]

    def keep_at_start(self, name: str, loss: float | None) -> None:
        """Note a loss that is only measured before the first step: a resumed run still has it."""
        if self.leads and loss is not None:
            path = self.path / "start.json"
            write_json(path, {**read_json(path, {}), name: loss})

    def export_student(self, student: torch.nn.Module) -> None:
        """Write, reload, compare; only then is there a folder under the final name."""
        with self.timed("export"):
            batch = next(iter(trainer.validation_batches(self.data, self.config.trainer)()))
            result = export(
                student,
                target=self.config.target,
                path=self.path / "export" / self.config.target,
                tokenizer=self.data.tokenizer,
                example_batch={k: v[:2] for k, v in batch.items()},
                dtype=self.config.export_dtype,
                purpose=self.config.purpose,
                card=self.card_facts(),
            )
        entry = result.entry(relative_to=self.path)
        self.report["exports"].append(entry)
        size = self.report["size"]
        size["compressed_bytes"] = entry["bytes"]
        size["ratio"] = size.get("teacher_bytes", size["dense_bytes"]) / entry["bytes"]

    def card_facts(self) -> CardFacts:
        """What the exporter cannot read from the model."""
        losses = {k: v for k, v in self.quality.items() if isinstance(v, float)}
        unit = self.quality["unit"]
        return CardFacts(
            base_model=str(self.config.student.path or self.config.teacher.path or "embedded"),
            teacher=str(getattr(self.teacher, "name_or_path", "") or ""),
            data=str(self.data.source),
            recipe=self.report["command"],
            quality={f"{self.quality['metric']} ({unit}), {k}": v for k, v in losses.items()},
            notes=(provenance(self.report, seed=self.config.seed, data=self.data.fingerprint),),
        )

    def compare(self) -> None:
        """Three more runs of equal seed, data and steps: dense, ptq, no_teacher."""
        if not self.config.compare:
            return
        from compress.scripts.lib.compare import compare_arms, summarise

        with self.timed("compare"):
            arms = compare_arms(self)
        self.quality["compare"] = summarise(arms, compressed=self.quality["compressed"])

    def finish(self, student: torch.nn.Module) -> None:
        """Samples of text, the page, the last table."""
        if self.config.task == "causal_lm":
            self.report["samples"] = self.samples(student)

    def texts_of(self, model: torch.nn.Module) -> list[str]:
        """What a model writes after each of the prompts; nothing where it writes no text."""
        if self.config.task != "causal_lm":
            return []
        return list(sample_texts(model, self.data.tokenizer, PROMPTS, max_new_tokens=40))

    def samples(self, student: torch.nn.Module) -> list[dict[str, str]]:
        """Teacher, dense student (of a comparison) and compressed student, side by side."""
        texts = {"compressed": self.texts_of(student)}
        if self.dense_texts:
            texts = {"dense": self.dense_texts, **texts}
        if self.teacher_model is not None:
            texts = {"teacher": self.texts_of(self.teacher_model), **texts}
        return [
            {"prompt": prompt, **{who: texts[who][i] for who in texts}}
            for i, prompt in enumerate(PROMPTS)
        ]

    @rank_zero_only
    def save(self) -> None:
        """report.json, report.html and, where all went well, the last table."""
        write_json(self.path / "report.json", self.report)
        page = write_html(self.path)
        loggers.finish(self.config, self.report, self.path)
        if self.report["status"] == "finished" and self.config.verbose:
            last_table(self.report, run_dir=self.path, page=page)

    @contextmanager
    def timed(self, phase: str) -> Any:
        """Says that a phase begins; adds its wall seconds to the report."""
        start = time.perf_counter()
        with announced(phase, verbose=self.config.verbose and rank_zero_only.rank == 0):
            yield
        self.seconds[phase] = round(time.perf_counter() - start, 3)
