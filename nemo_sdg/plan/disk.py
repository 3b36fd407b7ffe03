"""What a run writes: bytes and files of each round, what stays when it is done, and the most that lies there at a time."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_sdg.checkpoints.keeping import start_is_asked
from nemo_sdg.checkpoints.tensors import ITEM_BYTES
from nemo_sdg.config.starting import GROUPS, begins_with
from nemo_sdg.parallel.topology import Grid
from nemo_sdg.plan.course import Course
from nemo_sdg.plan.memory import OPTIMIZER_BYTES, adapter_parameters, rank_parameters
from nemo_sdg.store.fits import POLICY, REWARD, fits

_FILES_PER_WRITER = 2
"""torch_dist files of each rank that writes: Megatron's writers have two threads."""
_FILES_BESIDE = 10
"""Of a NeMo 2 folder: index, metadata, context, model config, tokenizer, result, sums."""


@dataclass(frozen=True)
class Stored:
    """One kind of things on the disk."""

    name: str
    num_bytes: int
    files: int
    when: str
    """each round, once, or what it lies there for."""
    stays: bool
    """Whether it is there when the run is done, of a round the last one."""
    every: bool = False
    """Whether it stays of each round."""
    passes: bool = False
    """Whether it goes as soon as its fit is done; what neither passes nor stays lies there until a round is evaluated."""


@dataclass(frozen=True)
class Disk:
    items: list[Stored]
    rounds: int

    @property
    def at_the_end(self) -> tuple[int, int]:
        """(bytes, files) when the run is done."""
        kept = [(item, self.rounds if item.every else 1) for item in self.items if item.stays]
        return sum(i.num_bytes * n for i, n in kept), sum(i.files * n for i, n in kept)

    @property
    def most(self) -> tuple[int, str]:
        """(bytes, what is then there for a while) at the fullest moment."""
        passing = [item for item in self.items if item.passes]
        between = sum(item.num_bytes for item in self.items if not item.stays and not item.passes)
        # A round's models are written before those of the round before are let go.
        renewed = [i for i in self.items if i.stays and not i.every and i.when == "each round"]
        twice = sum(i.num_bytes for i in renewed) if self.rounds > 1 else 0
        always = self.at_the_end[0] + twice + between
        largest = max(passing, key=lambda item: item.num_bytes, default=None)
        return (always, "") if largest is None else (always + largest.num_bytes, largest.name)


def disk_of(course: Course) -> Disk:
    """What the run of a course writes. Rows are of what is expected, checkpoints exact but for their indices."""
    items = [*_rows(course), *_models(course)]
    return Disk(items, course.config.run.rounds)


def _rows(course: Course) -> list[Stored]:
    asked, expect, config = course.asked, course.config.expect, course.config
    if asked is None:
        return []
    vocabulary = max((model.shape.vocab_size for model in course.models), default=1)
    prompt = expect.bytes_per_token * asked.prompt_tokens
    answer = asked.response_tokens * (expect.bytes_per_token + len(str(vocabulary)) + 1)
    groups = -(-int(asked.prompts) // config.generate.group_size)
    made = asked.prompts * asked.samples
    candidates = made * (expect.row_bytes + prompt + answer)
    kinds = [
        ("prompts", asked.prompts * (expect.row_bytes / 4 + prompt), groups),
        ("responses, scores, decisions", 3 * candidates, 3 * groups),
        # Lines, and the same rows as parquet, which is some third as large.
        ("datasets", 1.3 * made * (expect.row_bytes + prompt + expect.bytes_per_token * asked.response_tokens), 9),
    ]
    return [Stored(name, round(size), files + 3, "each round", stays=True, every=True) for name, size, files in kinds]


def _models(course: Course) -> list[Stored]:
    config, grid, items = course.config, course.grids.train, []
    all_stay = config.keep.models == "all"
    for fit in fits(config):
        if fit.task not in course.fits:
            continue
        result = fit.folder in (POLICY, REWARD)
        stays = result or config.keep.intermediate
        when = "each round" if stays else "until the round is evaluated"
        every = all_stay if result else stays
        items.append(_checkpoint(course, fit.task, f"{fit.folder}/", when, stays, every))
    for kind in begins_with(config):
        if GROUPS[kind] in course.fits:
            trained = kind in {fit.folder for fit in fits(config)}
            stays = all_stay or not trained or start_is_asked(config, kind)
            when = "once" if stays else "until a round has trained a later one"
            items.append(_checkpoint(course, GROUPS[kind], f"start/{kind}/", when, stays))
    for task in course.fits:
        settings = getattr(config, task)
        # A new one is whole before an older one goes; without restart_every there is one when the run is told to stop.
        count = settings.keep_last + 1 if settings.restart_every else 1
        # Weights that validation found best, by each restart point and now; a better one is whole before it goes.
        best = count + 1 if settings.validate_every and settings.keep_best else 0
        each = restart_bytes(course, task)
        what = f"restart point{'s' if count > 1 else ''} of {task}"
        when = f"while it is trained, {count} of them" if settings.restart_every else "if it is stopped"
        files = count * _files(course, grid, restart=True) + best * _files(course, grid)
        items.append(Stored(what, count * each + best * trained_bytes(course, task), files, when, stays=False, passes=True))
    return items


def _checkpoint(course: Course, task: str, name: str, when: str, stays: bool, every: bool = False) -> Stored:
    return Stored(name, model_bytes(course, task), _files(course, course.grids.train), when, stays, every)


def _files(course: Course, grid: Grid, restart: bool = False) -> int:
    # On GPUs all replicas share the writing, on CPUs the first one writes.
    writers = grid.size if course.machine.gpu else grid.tp * grid.pp
    return _FILES_PER_WRITER * writers + _FILES_BESIDE + (grid.size if restart else 0)


def model_bytes(course: Course, task: str) -> int:
    """Bytes of the trained weights of a task."""
    shape, reward = course.fits[task]
    parameters = rank_parameters(shape, 1, shape.num_layers, first=True, last=True, reward=reward)
    return parameters * ITEM_BYTES[course.dtype]


def trained_bytes(course: Course, task: str) -> int:
    """Bytes of what a task trains, without its optimizer: the weights, or the adapters alone."""
    return _trained(course, task) * ITEM_BYTES[course.dtype]


def restart_bytes(course: Course, task: str) -> int:
    """Bytes of a restart point: what is trained, with Adam's two moments and the main weights of half precisions."""
    return _trained(course, task) * (ITEM_BYTES[course.dtype] + OPTIMIZER_BYTES[course.dtype])


def _trained(course: Course, task: str) -> int:
    (shape, reward), lora = course.fits[task], getattr(course.config, task).lora
    if lora.rank is not None:
        return adapter_parameters(shape, 1, shape.num_layers, lora)
    return rank_parameters(shape, 1, shape.num_layers, first=True, last=True, reward=reward)
