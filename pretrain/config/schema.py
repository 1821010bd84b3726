"""What a config may say: typed, strict, frozen sections, every field with its meaning and unit.

Nothing here imports torch. Rules that need the data or the world size are in `plan`.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pretrain.config.cluster import ClusterConfig
from pretrain.config.engine import EngineConfig, OptimConfig, check_together
from pretrain.config.guard import GuardConfig, HealthConfig, WatchdogConfig
from pretrain.config.masking import MaskingConfig
from pretrain.config.profile import ProfileConfig
from pretrain.config.schedule import ScheduleConfig
from pretrain.config.section import (
    Fraction,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RunName,
    Section,
)
from pretrain.location import fault_of, is_remote


class DataConfig(Section):
    """Which images, and how they are read."""

    path: str
    """The shard set: the directory that holds ``manifest.json``, or its URL (``https://…``,
    ``s3://…``), or ``pipe:COMMAND {file}``."""
    allow_pipe: bool = False
    """Let ``path`` be a command, which is run for every file; no shell is involved."""
    cache_dir: str | None = None
    """Directory on a disk of each node in which files of remote sets are kept, below it in one
    of the user's own; null takes the one for temporary files (``TMPDIR``)."""
    cache_gib: PositiveFloat = 100.0
    """Most that a node keeps of remote sets, GiB."""
    remote_transfers: PositiveInt = 4
    """Shards of a remote set that a node fetches ahead at a time."""
    remote_stall_seconds: PositiveFloat = 60.0
    """Longest wait for a server's answer, and then for each further byte."""
    remote_retry_seconds: NonNegativeFloat = 300.0
    """How long a file is tried again while its server fails and nothing new comes."""
    train_split: str = "train"
    """Split of the manifest that is trained on."""
    eval_split: str | None = "validation"
    """Split that is evaluated on; null trains without evaluation."""
    build: str | None = None
    """Command that builds the shards, shown when they are missing."""
    build_automatically: bool = False
    """Run ``build`` when the shards are missing; only ``python -m data_tools.…`` is accepted."""
    expected_train_samples: PositiveInt | None = None
    """Samples to plan with while the shards are not built; training takes the manifest's count."""
    workers_per_rank: Annotated[int, Field(ge=0)] = 8
    """Loader processes of each rank; 0 loads in the rank itself."""
    images_per_second_per_core: PositiveFloat | None = None
    """What one core reads, decodes and crops, to plan with; null takes what benchmarks/loader.md
    has of photographs of 106 kB."""
    prefetch_batches: PositiveInt = 2
    """Micro-batches each loader process keeps ready."""
    lanes: PositiveInt = 64
    """Streams that a global batch is drawn from; a rank reads its share of them, shard by shard."""
    window_shards: PositiveInt = 8
    """Shards of a lane among which samples are shuffled; as many as there are shards, or more,
    makes every epoch one uniform permutation of the whole set."""
    max_bad_fraction: Fraction = 0.001
    """Unreadable samples tolerated, as a fraction of those read; beyond it the run stops."""

    @model_validator(mode="after")
    def check_location(self) -> Self:
        """Refuse URLs that cannot be meant, and commands that are not allowed."""
        fault = fault_of(self.path, allow_pipe=self.allow_pipe) if is_remote(self.path) else None
        if fault is not None:
            raise ValueError(f"path: {fault}")
        return self


class AugmentConfig(Section):
    """What happens to a training image between decoding and the model."""

    crop_scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Area of the random crop, as a fraction of the image."""
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    """Aspect ratio of the random crop, width over height."""
    crop_filter: Literal["bicubic", "bilinear"] = "bicubic"
    """How the random crop is resized, with antialiasing; evaluation is always bicubic."""
    flip_probability: Fraction = 0.5
    """Chance of a horizontal flip."""
    randaugment: str | None = "rand-m9-mstd0.5-inc1"
    """RandAugment in timm's notation; null is none."""
    erase_probability: Fraction = 0.25
    """Chance that one rectangle is replaced by normal noise, per pixel and channel."""
    mixup_alpha: NonNegativeFloat = 0.8
    """Beta parameter of mixup; 0 is no mixup."""
    cutmix_alpha: NonNegativeFloat = 1.0
    """Beta parameter of cutmix; 0 is no cutmix."""
    mix_probability: Fraction = 1.0
    """Chance that a group is mixed at all."""
    mix_switch_probability: Fraction = 0.5
    """Chance of cutmix where both are on."""
    mix_group: PositiveInt = 64
    """Consecutive positions of the global batch that share one draw and mix with each other."""
    label_smoothing: Fraction = 0.1
    """Mass taken from the label and spread over all classes."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Channel means that are subtracted, on the scale 0 to 1 (RGB)."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """Channel deviations that divide, on the scale 0 to 1 (RGB)."""

    @model_validator(mode="after")
    def check_ranges(self) -> Self:
        """Refuse intervals that run backwards and mixing groups that cannot pair."""
        for field in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, field)
            if low > high or low <= 0:
                raise ValueError(f"{field}: expected 0 < low <= high, got [{low}, {high}]")
        if self.mixes and self.mix_group % 2:
            raise ValueError(f"mix_group: expected an even number, got {self.mix_group}")
        return self

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.mix_probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


class ModelConfig(Section):
    """Which network. The variant's own shape may be overridden field by field."""

    variant: Literal[
        "swin_t",
        "swin_s",
        "swin_b",
        "swin_l",
        "swinv2_t",
        "swinv2_s",
        "swinv2_b",
        "swinv2_l",
        "swinv2_h",
        "swinv2_g",
        "swin_mlp_t_c6",
        "swin_mlp_t_c12",
        "swin_mlp_t_c24",
        "swin_mlp_b",
    ]
    """Row of the table in ``pretrain/models/variants.py``."""
    image_size: PositiveInt
    """Side of the square input, pixels."""
    window_size: PositiveInt
    """Side of an attention window, tokens."""
    num_classes: PositiveInt
    """Outputs of the head; must equal the length of the data's class list."""
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Stochastic depth of the last block; earlier blocks rise to it linearly from 0."""
    embed_dim: PositiveInt | None = None
    """Channels of the first stage; null takes the variant's."""
    depths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] | None = None
    """Blocks of each stage; null takes the variant's."""
    heads: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] | None = None
    """Attention heads of each stage; null takes the variant's."""
    pretrained_window_sizes: tuple[
        NonNegativeInt, NonNegativeInt, NonNegativeInt, NonNegativeInt
    ] = (0, 0, 0, 0)
    """V2: window side of each stage in the training that the weights come from, tokens: the bias
    network keeps its unit of distance. 0 takes this model's own windows."""


class EmaConfig(Section):
    """An average of the weights beside them, which training itself never reads."""

    decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """What remains of the average in each step; null keeps no average."""
    warmup: bool = True
    """Let the decay rise with the number n of steps: min(decay, 1 - n^(-2/3)), as timm does."""
    result: Literal["ema", "raw"] = "ema"
    """Weights that are exported, and whose accuracy is the run's, where there is an average."""

    @property
    def given(self) -> Literal["ema", "raw"]:
        """Weights that the run exports and is judged by: ``result``, or raw without an average."""
        return self.result if self.decay is not None else "raw"

    @property
    def evaluated(self) -> tuple[Literal["ema", "raw"], ...]:
        """Weights that every evaluation measures, one after the other."""
        return ("raw",) if self.decay is None else ("raw", "ema")


class BatchConfig(Section):
    """Global batch first; what each rank does at once follows from it."""

    global_size: PositiveInt
    """Images of one optimizer step over all ranks."""
    micro_size_max: PositiveInt
    """Most images of one forward pass of a rank; the plan takes the largest size that divides."""


class ProbeConfig(Section):
    """A second set that accuracy is measured on, such as ImageNet-1K during 22K pre-training.

    Its classes are found in the model's head by WordNet id, and it is evaluated over them only.
    """

    path: str
    """The shard set: its directory, or its URL (``https://…``, ``s3://…``)."""
    split: str = "validation"
    """Split that is evaluated on."""
    every_epochs: PositiveInt = 1
    """Epochs between evaluations; the last step is always evaluated."""
    leave_out_unknown_classes: bool = False
    """Evaluate without the classes that the model does not know, and without their images;
    otherwise the run does not start."""

    @model_validator(mode="after")
    def check_location(self) -> Self:
        """Refuse URLs that cannot be meant, and commands."""
        fault = fault_of(self.path, allow_pipe=False) if is_remote(self.path) else None
        if fault is not None:
            raise ValueError(f"path: {fault}")
        return self


class EvalConfig(Section):
    """How and when accuracy is measured."""

    every_epochs: PositiveInt = 1
    """Epochs between evaluations; the last step is always evaluated."""
    resize: PositiveInt | None = None
    """Short side after resizing, before the centre crop; null squashes to the image size."""
    batch_size_per_rank: PositiveInt = 128
    """Images each rank evaluates at once."""
    probe: ProbeConfig | None = None
    """A second set to measure on, through the WordNet ids of its classes; null measures none."""


class CheckpointConfig(Section):
    """When state is saved and how much is kept."""

    every_steps: PositiveInt = 500
    """Steps between saves; the last step is always saved."""
    background: bool = True
    """Write beside training, which then waits only for a copy of the state to host memory; the
    last save and one on a signal are waited for."""
    keep_last: PositiveInt = 3
    """Newest checkpoints kept."""
    keep_best: NonNegativeInt = 0
    """Checkpoints with the highest measured accuracy kept besides; where there are to be some,
    state is also saved after each evaluation."""
    keep_every_steps: PositiveInt | None = None
    """Checkpoints at multiples of this step are kept for ever; null keeps none for it."""


class LogConfig(Section):
    """How often numbers are written."""

    every_steps: PositiveInt = 10
    """Steps between records; also the only routine wait for the device."""
    report_seconds: NonNegativeFloat = 300.0
    """Least time between two versions of report.html while the run trains; 0 writes it at the end
    only."""
    alert_bad_fraction: Fraction = 0.0005
    """Unreadable images, as a fraction of those of the last 20 records, that are an alert."""
    alert_data_wait_fraction: Fraction = 0.3
    """Share of the time that waits for data, in 5 records in a row, that is an alert."""


class WandbConfig(Section):
    """Weights & Biases, a mirror of the record; its failure never stops training."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    """offline writes into the run directory for a later ``wandb sync``."""
    project: Name = "swin-pretrain"
    """Project the run appears in."""
    entity: Name | None = None
    """User or team; null takes the account's default."""


Target = Literal[
    "official", "timm", "huggingface", "torchvision", "mmdetection", "safetensors", "onnx"
]
"""A layout that weights can be written in."""


class ResultsConfig(Section):
    """What ``results``, at the end of a chain, makes of the weights of the run before it."""

    evaluate: tuple[str, ...] = ()
    """Shard sets to evaluate on; none takes the run's own held-out split, else its probe."""
    real_labels: str | None = None
    """ReaL labels (``real.json``) of the set that has as many images."""
    convert: tuple[Target, ...] = ()
    """Layouts to write, each compared with the source by what it computes."""


class RunConfig(Section):
    """One run, whole."""

    name: RunName
    """Name of the run and of its directory; the config's file name when not given."""
    runs_dir: str = "runs"
    """Directory that holds the run directories."""
    preset: Name | None = None
    """Which of the file's ``presets`` was taken; null takes none."""
    task: Literal["train", "results"] = "train"
    """results evaluates and converts the weights of ``init_from``, as the section ``results`` says;
    the launcher makes such a run where a chain says ``results``."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Fixes initialisation, sample order, augmentation and drop path."""
    init_from: str | None = None
    """Start from these weights: the name of a run in ``runs_dir``, or a path to whatever
    ``python -m pretrain.convert`` reads; null starts from scratch. Where neither the source nor
    ``init_classes`` names the classes of its head, the head is left out."""
    init_classes: str | None = None
    """Classes of the rows of that head, before what the source says: a file of lines
    ``id<TAB>name``, or a shard set of the same classes."""
    init_weights: Literal["raw", "ema"] | None = None
    """Which weights, where the source has both; null takes a run's exported ones, else raw ones."""
    init_image_size: PositiveInt | None = None
    """Side of the images that they were trained on, pixels, where the source does not say."""
    init_window_size: PositiveInt | None = None
    """Window side of V2 that they were trained with, tokens, where the source does not say."""
    tuned: str = "auto"
    """Whose measured settings a new run takes: auto is the file in ``runs_dir/tuned`` that fits it,
    if there is one; none takes none; else the path of a file that ``python -m pretrain.tune``
    wrote. A run's own config.yaml names the file whose settings it holds."""
    data: DataConfig
    model: ModelConfig
    masking: MaskingConfig | None = None
    """Learn to restore hidden squares of the images, without labels; null learns to classify."""
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig
    schedule: ScheduleConfig
    ema: EmaConfig = EmaConfig()
    batch: BatchConfig
    engine: EngineConfig = EngineConfig()
    guard: GuardConfig = GuardConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    health: HealthConfig = HealthConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    results: ResultsConfig = ResultsConfig()
    log: LogConfig = LogConfig()
    wandb: WandbConfig = WandbConfig()
    profile: ProfileConfig = ProfileConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def check_task(self) -> Self:
        """Refuse results of nothing."""
        if self.task == "results" and self.init_from is None:
            raise ValueError("task: results makes use of a run's weights; give init_from")
        return self

    @model_validator(mode="after")
    def check_optimizer(self) -> Self:
        """Refuse an optimizer that does not work where the engine keeps its state."""
        check_together(self.optim, self.engine)
        return self

    @model_validator(mode="after")
    def check_masking(self) -> Self:
        """Refuse what has to do with labels in a run that learns without them."""
        if self.masking is None:
            return self
        of_labels = {
            "data.eval_split=null": self.data.eval_split is not None,
            "eval.probe=null": self.eval.probe is not None,
            "augment.mix_probability=0": self.augment.mixes,
            "augment.label_smoothing=0": self.augment.label_smoothing > 0,
        }
        missing = [assignment for assignment, wrong in of_labels.items() if wrong]
        if missing:
            raise ValueError(f"masking: learns without labels; give {' '.join(missing)}")
        return self
