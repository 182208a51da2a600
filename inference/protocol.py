"""What gateway, engine and node say to each other. Plain values: no Django, no vLLM.

A request travels as an RQ job whose JSON data is ``[JOB_GENERATE, null, [], {"request": <GenerateRequest>}]``.
Answers come back over the Channels layer (Redis pub/sub), one message a gateway and engine step:

    {"type": "engine.events", "replica": REPLICA_ID, "events": [EVENT, ...]}

An EVENT is a list ``[job_id, seq, kind, ...]``. ``seq`` counts from 0 within a job, without gaps:

    [job_id, seq, ACCEPTED, replica_id, prompt_tokens]               first event: the prompt is in the engine's batch
    [job_id, seq, DELTA, index, text, token_ids, logprobs|None, finish_reason|None, stop_reason|None]
    [job_id, seq, DONE, usage]                                       last event: {"prompt_tokens", "completion_tokens",
                                                                     "cached_tokens", "queued_s", "ttft_s", "e2e_s",
                                                                     "engine_s"}
    [job_id, seq, ERROR, {"code", "message", "param"}]               last event instead of DONE (codes: mmserve.errors)

``prompt_tokens`` is a list, one count a prompt. ``index`` is ``prompt_index * n + choice``.
``logprobs`` is a list, one entry a token: ``{"token", "logprob", "bytes", "top": [{"token", "logprob", "bytes"}]}``.
With ``echo`` the prompt's text comes as the first DELTA of each index (logprobs of the prompt with it, the first null).

To a replica's control channel (``control_channel(replica_id)``, by ``channel_layer.send``):

    {"type": "engine.cancel", "jobs": [job_id, ...]}
    {"type": "engine.resend", "reply_to": channel, "jobs": [[job_id, from_seq], ...]}
    {"type": "engine.drain", "deadline_s": float}
    {"type": "engine.sleep", "rung": str, "deadline_s": float}        finish what runs, then rest with the process up
    {"type": "engine.wake"}

A resend is answered by an ``engine.events`` message with what the engine still holds of each job from that seq on
(an engine keeps the events of finished jobs for ``KEEP_FINISHED_S``) and a field
``"alive": [[job_id, next_seq], ...]``, ``"unknown": [job_id, ...]``.

To all gateways (group ``GATEWAYS``):

    {"type": "replica.beat", **ReplicaBeat}
    {"type": "replica.lost", "replica": REPLICA_ID, "reason": str}    for good: what it says later is ignored
    {"type": "config.revision", "revision": int}
    {"type": "deployments.outlook", "deployments": {NAME: Outlook}}     from the controller: what is wished for, not up
"""

from __future__ import annotations

from typing import Any

import msgspec

JOB_GENERATE = "inference.engine.jobs.generate"
PRIORITIES = ("high", "normal", "low")

ACCEPTED, DELTA, DONE, ERROR = 0, 1, 2, 3

GATEWAYS = "gateways"
HEARTBEAT_S = 0.5
STALE_AFTER_S = 5.0
KEEP_FINISHED_S = 60.0
GATEWAY_TTL_S = 5
FENCE_TTL_S = 24 * 3600

EAGER, COMPILING, COMPILED = "eager", "compiling", "compiled"


def queue_name(deployment: str, priority: str) -> str:
    """RQ queue of a deployment and priority class: ``<deployment>.high|normal|low``."""
    return f"{deployment}.{priority}"


def control_channel(replica_id: str) -> str:
    """Channels name on which a replica takes cancel, resend and drain."""
    return f"engine.{replica_id}"


def bell_key(deployment: str) -> str:
    """Redis list that wakes one idle replica: whoever enqueues pushes one item if it is empty."""
    return f"mmserve:bell:{deployment}"


def own_bell_key(deployment: str, replica_id: str) -> str:
    """The same for the one replica that a job prefers; it expires when nobody hears it."""
    return f"{bell_key(deployment)}:{replica_id}"


def beat_key(replica_id: str) -> str:
    """Redis string with the last ReplicaBeat (JSON), expiring after STALE_AFTER_S."""
    return f"mmserve:replica:{replica_id}"


def fence_key(replica_id: str) -> str:
    """Redis string that says that a replica was given up: it gets no more jobs, and ends itself."""
    return f"mmserve:fence:{replica_id}"


def gateway_key(channel: str) -> str:
    """Redis string that lives while the gateway process with this reply channel does."""
    return f"mmserve:gateway:{channel}"


def node_channel(node: str) -> str:
    """Plain Redis pub/sub channel on which a node hears that its replicas' rows changed."""
    return f"mmserve:node:{node}"


def checks_key(node: str) -> str:
    """Redis list of the CheckRequests that wait for a node."""
    return f"mmserve:checks:{node}"


CHECK_TTL_S = 30
NOT_HERE = b"not here"  # the answer of a node that has not all files
# Redis string: since when (unix time) each deployment that is not up is asked for (JSON, by name).
ASKED_KEY = "mmserve:asked"


CONTROLLER_CHANNEL = "mmserve:controller"

# Hash of the configuration revision that each process runs, by the process's name.
REVISIONS_KEY = "mmserve:revisions"
# Whoever has not reported for this long is gone.
REPORT_STALE_S = 10.0


def revision_report(revision: int, now: float) -> str:
    """A process's line in REVISIONS_KEY."""
    return f"{revision} {now:.3f}"


class Sampling(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Sampling parameters, already checked; names and meanings are vLLM's ``SamplingParams``."""

    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: list[str] = []
    stop_token_ids: list[int] = []
    bad_words: list[str] = []
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    json_schema: str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class GenerateRequest(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One job: either ``prompts`` or ``messages`` is set."""

    request_id: str
    reply_to: str
    deadline: float  # unix time, seconds
    sampling: Sampling
    prompts: list[str | list[int]] | None = None
    messages: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = True
    echo: bool = False
    priority: str = "normal"
    # What another engine had made of the only choice before it died: continue after these tokens.
    resume_token_ids: list[int] = []
    traceparent: str | None = None


class ReplicaBeat(msgspec.Struct, kw_only=True):
    """A replica's load, every HEARTBEAT_S. Rates are moving averages over about ten seconds."""

    replica: str
    deployment: str
    worker: str  # RQ worker name
    state: str  # loading | ready | draining | asleep
    stage: str = ""
    at: float = 0.0
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0  # 0..1
    tokens_per_s: float = 0.0
    jobs_per_s: float = 0.0
    ttft_s: float = 0.0
    tpot_s: float = 0.0
    steps: int = 0  # engine steps so far: progress, for a watchdog
    max_streams: int = 0
    context_length: int = 0
    rss_bytes: int = 0
    # Its ladder: rungs it can rest on, where it is, what it has freed a device and taken of the host there, and how
    # long its last way back took.
    rungs: list[str] = []
    rung: str = "serving"
    freed_bytes: int = 0
    host_bytes: int = 0
    woke_from: str = ""
    woke_s: float = 0.0
    memory: dict[str, int] = {}  # bytes by part, on each of its devices; empty while it loads
    peak_running: int = 0  # streams in one step of the engine, since it was loaded
    # Of a stage of its load: how far it is, and how many seconds that leaves; from its node while files are fetched.
    done_bytes: int | None = None
    total_bytes: int | None = None
    left_s: float | None = None
    form: str = ""  # EAGER | COMPILING (and eager until then) | COMPILED; empty where the engine has no say


class Outlook(msgspec.Struct, kw_only=True):
    """When a deployment that is not up is expected to be."""

    status: str
    stage: str | None = None
    eta_s: float | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None


class ReplicaSpec(msgspec.Struct, kw_only=True, tag="replica"):
    """What a node tells the template process to start."""

    replica: str
    deployment: str
    served_id: str  # name@version
    model_path: str
    redis_url: str
    options: EngineOptions
    log_path: str
    drain_s: float = 30.0
    warmup_prompts: list[str] = []
    gpus: list[int] = []  # the only ones that it may see, by the PCI bus's order
    forms: str = ""  # folder of compiled forms (inference.engine.forms); empty: the engine stays eager


class OptionsCheck(msgspec.Struct, kw_only=True, tag="check"):
    """What a node tells the template process to try: would the engine take these options? Nothing is loaded.

    The answer is pushed to the Redis list ``reply_to``: ``""``, or why not.
    """

    reply_to: str
    redis_url: str
    model_path: str
    options: EngineOptions


class CompileJob(msgspec.Struct, kw_only=True, tag="compile"):
    """What an engine wishes for, and a node tells the template process to make: a compiled form."""

    key: str
    folder: str
    model_path: str
    options: EngineOptions
    log_path: str = ""


class CheckRequest(msgspec.Struct, kw_only=True):
    """The same question as a node is asked it, in its list ``checks_key(node)``."""

    reply_to: str
    version: int  # primary key
    draft: int | None = None  # the same of its draft
    options: EngineOptions


class EngineOptions(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What an operator sets of an engine; None is vLLM's or the checkpoint's own."""

    dtype: str = "auto"
    context_length: int | None = None
    max_streams: int = 64
    max_batched_tokens: int | None = None
    kv_cache_bytes: int = 512 * 2**20
    prefix_caching: bool = True
    in_process: bool = True
    tensor_parallel: int = 1
    quantization: str | None = None  # on load
    speculation: str | None = None
    speculative_tokens: int = 4
    draft_path: str | None = None  # folder of the model that guesses
    guided_decoding: str = "guidance"  # backend of structured outputs, or "off"
    trust_remote_code: bool = False
    extra: dict[str, Any] = {}
