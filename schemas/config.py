"""A job's configuration: frozen, checked once, free of I/O.

What a part contributes to a fingerprint is decided here too (`ClipsConfig.identity`, `ModelConfig.identity`): a setting that
changes rows is in, one that only changes speed is not.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from schemas.identity import fingerprint, model_slug
from schemas.secrets import has_credentials, redacted

Effort = Literal["exact", "fast"]
CLIPS_VERSION = 6  # raised when the code of decode, shots, sample or quality gives other rows for the same settings
FAST_VERSION = 2  # likewise, where that is so with `effort: fast` alone
VIDEO_EXTENSIONS = (
    "mp4", "m4v", "mov", "mkv", "webm", "avi", "flv", "mpg", "mpeg", "m2v", "ts", "m2ts", "mts", "wmv", "asf", "ogv",
    "3gp", "3g2", "mxf", "vob",
)  # fmt: skip


class Part(BaseModel):
    """Base of all parts: immutable, and an unknown key is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


def _without_credentials(uri: str) -> str:
    if has_credentials(uri):
        raise ValueError(
            f"{redacted(uri)}: credentials do not belong in a URL; put them in the environment or its config files"
        )
    return uri


Uri = Annotated[str, AfterValidator(_without_credentials)]  # goes into tables and logs


class InputConfig(Part):
    """Where the videos are."""

    uri: Uri = Field(min_length=1, description="folder, glob, file or manifest (.txt, .csv, .parquet); local or any fsspec URL")
    extensions: tuple[str, ...] = Field(VIDEO_EXTENSIONS, description="what counts as a video, without the dot")
    allow: Annotated[tuple[Uri, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)] = Field(
        (),
        description="folders and URLs that videos and models must lie below, whatever manifests or links say; none: anywhere",
    )


class LimitsConfig(Part):
    """What an untrusted file may cost. A limit decides what a video's rows are, so limits are part of the clips fingerprint."""

    max_pixels: int = Field(8192 * 4352, gt=0, description="pixels of a frame")
    max_duration_s: float = Field(24 * 3600.0, gt=0, description="seconds of a video")
    max_packets: int = Field(20_000_000, gt=0, description="packets of the video stream")
    unit_min_bytes: int = Field(32 << 20, gt=0, description="files up to this size are one unit")
    unit_s: float = Field(600.0, gt=0, description="distance of the marks at which a longer file is cut into units")


class ClipsConfig(Part):
    """How a video becomes clips."""

    split: Literal["shots", "fixed", "none"] = Field("shots", description="cut at shots, every max_s seconds, or not at all")
    min_s: float = Field(1.0, ge=0, description="no clip is cut shorter than this (a whole video may be)")
    max_s: float = Field(10.0, gt=0, description="longer shots are cut; also the length for split: fixed")
    short_side: int = Field(224, ge=16, le=2160, description="pixels of the shorter side of kept frames, aspect kept")
    effort: Effort = Field(
        "exact",
        description="fast: frames that no other frame is made from (many B-frames) are not decoded, so never looked at; the "
        "other B-frames keep their block edges (H.264)",
    )
    limits: LimitsConfig = LimitsConfig()

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if self.max_s < 2 * self.min_s:
            raise ValueError("max_s must be at least twice min_s, or a long shot cannot be cut")
        return self

    def identity(self) -> dict[str, Any]:
        """All that decides a clip's rows."""
        versions = {"version": CLIPS_VERSION} | ({"fast": FAST_VERSION} if self.effort == "fast" else {})
        return {"clips": self.model_dump(mode="json"), **versions}

    def fingerprint(self) -> str:
        """Names this way of making clips in ids and paths."""
        return fingerprint(self.identity())


class ModelConfig(Part):
    """What the three model stages share."""

    model: Uri = Field(min_length=1, description="hub id, folder or fsspec URL of a folder; @revision pins a hub id")
    frames: int = Field(8, ge=1, le=256, description="frames of a clip that the model sees, at the mid-bins of its time")
    name: str | None = Field(
        None,
        pattern=r"^[a-z][a-z0-9_]{0,40}$",
        description="column of this model in `annotations`, of lower case letters, digits and _; unset: label, embedding or "
        "caption",
    )

    @field_validator("model")
    @classmethod
    def _no_spaces_around(cls, model: str) -> str:
        if model != model.strip():
            raise ValueError("has spaces around it")
        return model

    @property
    def slug(self) -> str:
        """The model's name in paths."""
        return model_slug(self.model)

    def identity(self, clips_fingerprint: str, revision: str) -> dict[str, Any]:
        """All that decides this model's rows; `revision` is what was really found (commit or digest of the files)."""
        settings = self.model_dump(mode="json", exclude={"name", "model"})
        return {"clips": clips_fingerprint, "slug": self.slug, "revision": revision, "settings": settings}

    def fingerprint(self, clips_fingerprint: str, revision: str) -> str:
        """Names this way of using this model in paths."""
        return fingerprint(self.identity(clips_fingerprint, revision))


class ClassifyConfig(ModelConfig):
    """A video classifier, or with `labels` a zero-shot classifier (CLIP, SigLIP) over your own labels."""

    labels: tuple[str, ...] = Field((), description="your own labels: makes a zero-shot classifier of an image-text model")
    template: str = Field("a photo of {}", description="sentence that a label is put into, with {} for the label")
    top_k: int = Field(5, ge=1, le=1000, description="labels kept of a clip")

    @model_validator(mode="after")
    def _labels_are_usable(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels repeats a label")
        if self.labels and "{}" not in self.template:
            raise ValueError("template needs {} for the label")
        return self


class CaptionConfig(ModelConfig):
    """A captioner: GIT, or an image-text chat model with a prompt."""

    prompt: str = Field("Describe this video in one sentence.", description="what a chat model is asked; GIT takes none")
    max_tokens: int = Field(64, ge=1, le=4096, description="longest caption, in tokens of the model")


class EmbedConfig(ModelConfig):
    """An image-text model (CLIP, SigLIP) whose frame embeddings are averaged to unit length."""


class MachinesConfig(Part):
    """A group of machines of one shape, as a cluster's autoscaler brings them."""

    cpus: float = Field(gt=0, description="CPUs of a machine")
    gpus: float = Field(0.0, ge=0, description="GPUs of a machine")
    accelerator_type: str | None = Field(None, min_length=1, description="kind of its GPUs, in Ray's words, such as L4 or A100")
    most: int = Field(ge=1, description="most machines of the group")


class ResourcesConfig(Part):
    """Where and how fast: nothing in here changes a row beyond rounding, so none of it is in a fingerprint."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where the cluster has one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: float32 on CPUs, bfloat16 on GPUs"
    )
    machines: tuple[MachinesConfig, ...] = Field(
        (), description="what an autoscaler may bring beside the machines that are there when a run starts; for --address"
    )
    accelerator_type: str | None = Field(
        None, min_length=1, description="kind of GPU that actors run on, in Ray's words, such as L4 or A100; unset: any"
    )
    gpus_per_actor: float = Field(1.0, gt=0, le=8, description="GPUs of an actor of the model stages")
    cpus_per_actor: float | None = Field(
        None,
        gt=0,
        description="CPUs of an actor beside a GPU; unset: 1, or less where actors would take more than half of a machine. "
        "On CPUs actors take what decode leaves",
    )
    actors: int | None = Field(
        None, ge=1, description="most actors of the model stages; unset: one per GPU, or one for two CPUs"
    )
    min_actors: int | None = Field(
        None, ge=1, description="fewest actors of the model stages; unset: one per GPU that is there at the start, or one"
    )
    batch_clips: int = Field(16, ge=1, description="clips of a batch")
    batch_bytes: int = Field(256 << 20, ge=1 << 20, description="bytes of frames of a batch")
    decode_cpus: float | None = Field(
        None, gt=0, le=64, description="CPUs a decode task asks for; unset: so that all cores decode"
    )
    unit_deadline_s: float = Field(1800.0, gt=0, description="seconds that one unit may take before its worker is ended")
    stall_s: float = Field(3600.0, gt=0, description="seconds without any finished unit after which a run stops early")
    worker_memory_bytes: int = Field(4 << 30, ge=256 << 20, description="memory that a decode worker may take")
    object_store_bytes: int | None = Field(None, ge=80 << 20, description="Ray's object store where Clipmill starts Ray itself")
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="where Prometheus finds metrics where Clipmill starts Ray itself; unset: any free port",
    )
    epoch_clips: int = Field(500_000, ge=1, description="clips after which an epoch is published")
    epoch_s: float = Field(3600.0, gt=0, description="seconds after which an epoch is published")


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, dict | ModelConfig) else () if value is None else value


_T = TypeVar("_T")
OneOrMany = Annotated[tuple[_T, ...], BeforeValidator(_one_or_many)]


class JobConfig(Part):
    """A whole job. Each model stage takes one entry or a list of them; a stage left out is not run."""

    input: InputConfig
    output: Uri = Field(min_length=1, description="folder or fsspec URL that holds the tables")
    clips: ClipsConfig = ClipsConfig()
    classify: OneOrMany[ClassifyConfig] = ()
    embed: OneOrMany[EmbedConfig] = ()
    caption: OneOrMany[CaptionConfig] = ()
    resources: ResourcesConfig = ResourcesConfig()
    preset: str | None = Field(None, description="preset the job began with; recorded, not used again")
