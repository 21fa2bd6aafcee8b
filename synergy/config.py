"""The config, as Hydra composes it: every key of ours with its type and default. Native keys of a framework stand below
``sft.config``, ``rl.verl``, ``sample.engine`` and ``evaluate.server`` under the framework's own names, and are checked by it.

Unknown keys are refused by name. Recipe knobs are checked by the dataclass of their strategy (``synergy/strategies``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from synergy.data.problems import CHECKS
from synergy.ranges import LARGEST_SEED, Range, number


@dataclass
class Model:
    path: str = MISSING
    """A local checkpoint folder, a hub name, or ``lab`` for the tiny model that ships with the package."""
    revision: str | None = None
    """Hub commit; compulsory for a hub name, since a name alone does not say which weights."""
    template: str = "qwen2_vl"
    """LLaMA-Factory's name of the chat template."""


@dataclass
class Benchmark:
    """Questions of your own (``records``), or one of the paper's sets with difficulty levels (``tagged``)."""

    name: str = MISSING
    records: str | None = None
    """JSONL of records, relative to the data source."""
    kind: str = "open"
    """open: the answer is judged; choice: its letter or content; mathvision, mathverse, mathvista, mmmu, mmstar: by the rules
    of that set."""
    tagged: str | None = None
    """A folder with the published parquet files, or the hub name of the data set; only for the last five kinds."""
    revision: str | None = None
    """Its hub commit; compulsory for a hub name."""
    split: str | None = None
    """Null: the one that the paper evaluates."""
    level: str = "difficulty_level_for_qwen2.5_vl_7b"
    """Column with the difficulty level, 1 to 5. MathVision's own column ``level`` is another thing."""
    passrate: str | None = "passrate_for_qwen2.5_vl_7b"
    """Column with the share, or count of 16, of the right runs that made the level; null: there is none."""
    question: str | None = None
    """Column that is asked; null: as synergy/data/layouts.py says."""
    levels: str | None = None
    """A file that ``synergy tag recipe.questions=benchmarks`` wrote, id -> passes of 16 runs: your own base model's levels in
    place of those that the data bring. Null: theirs."""


@dataclass
class Source:
    """A data set as somebody published it, for ``synergy data prepare``."""

    name: str = MISSING
    """Yours, and unlike the others'; each record keeps it as ``source``."""
    path: str = MISSING
    """A file (parquet, JSONL, JSON, CSV, TSV), a folder of them, or the hub name of a data set."""
    revision: str | None = None
    """Hub commit; compulsory for a hub name."""
    subset: str | None = None
    """A folder below the data set's, where it has several configurations."""
    split: str = "train"
    """Which files of a folder: ``train.parquet``, ``train-00000-of-00002.parquet``, ``train/…``; an only file is any split."""
    layout: str = "columns"
    """How a row is read (synergy/data/readers/shapes.py): columns, sharegpt, s1, s1.1, mm_eureka, mmk12, eureka_distill,
    vlmevalkit, or written: what ``data prepare`` itself writes."""
    columns: dict[str, str] = field(default_factory=dict)
    """Field of the record -> column; a field without one is read from the column of its own name."""
    media: str | None = None
    """Folder or zip file with the images that rows name; null: the folder of the rows' file. Nothing outside is read."""
    into: str = "train"
    """train, validation or benchmark."""


@dataclass
class Data:
    source: str | None = None
    """``lab`` (handwritten digits, made on the spot) or a folder with the JSONL files below. Not needed where no stage reads
    records: by recipe=base with tagged benchmarks."""
    sources: list[Source] = field(default_factory=list)
    """What ``synergy data prepare`` reads; the folder that it ends with is then ``source``."""
    checks: dict[str, str] = field(default_factory=lambda: dict.fromkeys(CHECKS, "fail"))
    """Check -> fail (the default), drop (left out and listed) or repair, for ``data prepare`` (synergy/data/problems.py)."""
    against: list[str] | None = None
    """Benchmark tables (.tsv) or records (.jsonl) that training questions of ``data prepare`` must not overlap with. Null: the
    evaluate.benchmarks that are at hand, in a folder or in the hub's cache; []: none."""
    workers: int | None = number(None, least=1)
    """Processes of ``data prepare``; null: one per processor."""
    train: str = "train.jsonl"
    validation: str | None = "val.jsonl"
    instruction: str = MISSING
    """Appended to every query in SFT, RL and the evaluation of tuned models."""
    sizes: dict[str, int] = field(default_factory=dict, metadata={"range": Range(0)})
    """Only for ``lab``: number of records per split."""
    limit: int | None = number(None, least=1)
    """Use only the first so many training records."""
    select: list[Any] = field(default_factory=list)
    """Steps by which training records are chosen and mixed, such as [{level: [2, 3]}, {shuffle: 0}]: synergy/data/select.py."""
    seed: int = number(0, least=0, most=LARGEST_SEED)


@dataclass
class Sft:
    config: dict[str, Any] = field(default_factory=dict)
    """LLaMA-Factory's own keys."""
    choose: str = "last"
    """last: the final weights; best: of a checkpoint per epoch, the one with the lowest loss on the validation split (never on
    a benchmark). The paper reports the best epoch and leaves unstated how it was found. Rounds always hand on their last."""
    batch: int | None = number(None, least=1)
    """Rows of a step over all GPUs, from which accumulation follows; null: as ``config`` says, on one GPU."""
    gpus: int | None = number(None, least=1)
    """Processes, one per GPU; null: all GPUs of this host."""
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Reward:
    """What judges the responses of RL and of sampling; the evaluation keeps the project's answer checker."""

    path: str | None = None
    """A Python file of yours (reward_fns/README.md, "Your own reward"); null: reward_fns/accuracy_format.py."""
    name: str = "compute_score"
    """The function in that file."""


@dataclass
class Rl:
    module: str = "verl.trainer.main_ppo"
    """What ``python -m`` runs: verl's trainer, or a plug-in that starts it."""
    verl: dict[str, Any] = field(default_factory=dict)
    """verl's own keys; a key that verl does not know is an error."""
    verl_add: dict[str, Any] = field(default_factory=dict)
    """Keys that verl accepts but whose defaults it does not list (passed with ``++``)."""
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Merge:
    """How mergekit runs; method, parameters and ratios are the recipe's."""

    dtype: str = "float32"
    """In which mergekit computes; what is written has the base model's own. Unstated in the paper."""
    options: list[str] = field(default_factory=list)
    """More options of ``mergekit-yaml`` that do not change the result, such as ``--cuda``."""
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Sampling:
    temperature: float = number(1.0, least=0)
    top_p: float = number(1.0, least=0, most=1, above=True)
    top_k: int = number(-1, least=-1)
    max_tokens: int = number(MISSING, least=1)
    seed: int = number(0, least=0, most=LARGEST_SEED)


@dataclass
class Sample:
    n: int = number(8, least=1)
    """Responses per question."""
    sampling: Sampling = field(default_factory=Sampling)
    engine: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``vllm.LLM``."""
    replicas: int | None = number(None, least=1)
    """Engines side by side; null: one per tensor_parallel_size GPUs."""
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Judge:
    """A model behind an OpenAI-compatible endpoint that judges the responses in which rules find no answer."""

    endpoint: str | None = None
    """Like http://host:8000/v1. Null: no judge; a response in which rules find no answer counts as wrong."""
    model: str = "Qwen/Qwen2.5-VL-32B-Instruct"
    """As the endpoint calls it. The default is the paper's."""
    key_env: str | None = None
    """Name of the environment variable that holds the key."""
    workers: int = number(16, least=1)
    timeout: float = number(120.0, least=0, above=True)
    """Seconds for one reply."""
    retries: int = number(3, least=0)


@dataclass
class Evaluate:
    benchmarks: list[Benchmark] = field(default_factory=list)
    source: str | None = None
    """Where the ``records`` of benchmarks lie: ``lab`` or a folder. Null: ``data.source``."""
    runs: int = number(4, least=1)
    sampling: Sampling = field(default_factory=Sampling)
    workers: int = number(64, least=1)
    """Requests in flight, over all servers."""
    server: list[str] = field(default_factory=list)
    """Arguments of vLLM's OpenAI-compatible server."""
    replicas: int | None = number(None, least=1)
    """Servers side by side; null: one per GPU, or per tensor-parallel-size GPUs."""
    port: int | None = number(None, least=1, most=65535)
    """Of the first server, the others have those that follow; null: free ones."""
    startup_timeout: float = number(600.0, least=0, above=True)
    judge: Judge = field(default_factory=Judge)
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Lengths:
    """Response lengths in tokens."""

    rl: int = number(MISSING, least=1)
    rl_after_sft: int = number(MISSING, least=1)
    """The paper gives RL more room when it starts from an SFT model."""


@dataclass
class Budget:
    """What one pass of plain RL is; recipes with rounds split it."""

    rl_epochs: int = number(MISSING, least=1)
    """Times that plain RL sees every training question."""
    rl_steps: int | None = number(None, least=1)
    """Optimizer steps instead of epochs; null: by ``rl_epochs``."""


@dataclass
class Frameworks:
    """Interpreter of each framework; null: the environments made by ``make setup``."""

    llamafactory: str | None = None
    verl: str | None = None
    mergekit: str | None = None
    vllm: str | None = None
    vlmevalkit: str | None = None


@dataclass
class Run:
    dir: str = "runs"
    """Everything is written below; recipes share finished stages here."""
    store: str | None = None
    """URL of a store of finished stages for machines that share no folder, such as s3://BUCKET/PREFIX (S3: AWS_ENDPOINT_URL and
    the keys of AWS are read from the environment), file:///SHARED/FOLDER, or another of fsspec's (synergy/driver/store.py)."""
    stall_minutes: float = number(30.0, least=0, above=True)
    """A framework that says nothing for so long is stopped."""
    stage_hours: float | None = number(None, least=0, above=True)
    """A stage that takes longer is stopped; the same command continues it. Null: as long as it takes."""
    retries: int = number(1, least=0)
    """More attempts, each from the last checkpoint, after a failure that may pass: network, a port in use, a lost GPU."""
    keep_going: bool = False
    """In a sweep, go on with the other jobs when one fails; it is told at once and at the end, and by the exit code."""
    takeover: bool = False
    """Take the run directory over from a driver elsewhere that gives no sign of life any more (synergy/driver/lock.py)."""
    warm: bool = False
    """Import the frameworks' libraries once for all stages (synergy/driver/warm.py); with rl.module=verl_fork those of verl's
    workers too, on one host."""
    verify: bool = True
    """Before a stage starts, show by a forward pass that its framework reads its model as it is (synergy/driver/forward.py)."""
    keep: str = "all"
    """Which finished checkpoints stay. all: every stage's. final: those that are evaluated or that a recipe ends with; what
    rounds left in between goes once nothing planned needs it, and is made again should something else need it."""
    keep_work: bool = False
    """Keep the frameworks' own checkpoints after a stage is published."""


@dataclass
class Cluster:
    """Where stages run; decides no result. recipes/cluster/{local,ray}.yaml."""

    kind: str = "local"
    """local: on this machine. ray: as a job of a Ray cluster, by ``synergy submit``."""
    address: str | None = None
    """Of the cluster's dashboard, like http://head:8265. Tokens and passwords stay in the environment: RAY_AUTH_MODE=token and
    RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH."""
    python: str | None = None
    """Interpreter of the driver on the cluster's nodes; null: where this one is."""
    workdir: str | None = None
    """Folder there against which relative paths count; null: where this one is."""
    env: dict[str, str] = field(default_factory=dict)
    """More of the job's environment. Everybody who may read the cluster's jobs sees it."""
    nodes: int | None = number(None, least=1)
    """Over how many nodes SFT and RL are spread; null: ``rl.verl.trainer.nnodes``."""
    gpus: int | None = number(None, least=0)
    """GPUs of each of these nodes, and of the node that samples or evaluates; null: ``rl.verl.trainer.n_gpus_per_node``."""
    cpus: float = number(1.0, least=0)
    """Processors of each node that a stage claims; RL three for each GPU at least, as verl does."""
    memory_gb: float | None = number(None, least=0)
    """Memory of each node that a stage claims, into which what RL sends there must fit; null: not asked for."""
    gpu_memory_gb: float | None = number(None, least=0)
    """Memory of each GPU there, by which recipes/rl/paper chooses how the model is spread, and what can't fit is refused. Null:
    as ``synergy submit`` reads it from the nodes; not known where they tell none, and under a script of ``--dry-run``."""
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    """Name or kind of a stage -> its own nodes, gpus, cpus, memory_gb, gpu_memory_gb, as in +cluster.stages.evaluate.gpus=1:
    evaluations of several models then run side by side on one node."""
    image: str | None = None
    """Of ``synergy submit --dry-run=kuberay``: the container image with the environments."""
    claim: str | None = None
    """The same: name of the persistent volume claim that all pods share."""
    mount: str = "/shared"
    """Where the claim is mounted; run.dir, data and model lie below."""
    late: bool = False
    """Nodes may join after the job was sent: what is lacking then is told, not refused."""
    wait_minutes: float = number(10.0, least=0)
    """How long a stage waits for nodes that are not there (yet, or any more)."""


@dataclass
class Config:
    recipe: Any = MISSING
    seed: int = number(0, least=0, most=LARGEST_SEED)
    """Of training: data order, SFT, rollouts. The data themselves have ``data.seed``."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    lengths: Lengths = field(default_factory=Lengths)
    budget: Budget = field(default_factory=Budget)
    sft: Sft = field(default_factory=Sft)
    reward: Reward = field(default_factory=Reward)
    rl: Rl = field(default_factory=Rl)
    merge: Merge = field(default_factory=Merge)
    sample: Sample = field(default_factory=Sample)
    evaluate: Evaluate = field(default_factory=Evaluate)
    frameworks: Frameworks = field(default_factory=Frameworks)
    cluster: Cluster = field(default_factory=Cluster)
    run: Run = field(default_factory=Run)
