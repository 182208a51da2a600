"""Every setting of mmserve, read from the environment; `manage.py check` refuses a wrong one at start."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import structlog
from django.core.exceptions import ImproperlyConfigured

from mmserve.environment import Environment
from registry.store_url import storage_params

env = Environment()
BASE_DIR = Path(__file__).resolve().parent.parent

# Where databases, model files, logs and credentials live.
DATA_DIR = Path(env("MMSERVE_DATA_DIR", default=str(BASE_DIR / "var"))).resolve()
# Where the gateway listens. Only a person who means it should serve other machines.
HOST = env("MMSERVE_HOST", default="127.0.0.1")
PORT = env.int("MMSERVE_PORT", default=8000)


def _secret_key() -> str:
    """DJANGO_SECRET_KEY, else the one that the first start generated (mode 0600)."""
    path = DATA_DIR / "secret_key"
    if given := env("DJANGO_SECRET_KEY", default=""):
        return given
    try:
        return path.read_text().strip() if path.exists() else "insecure-not-generated-yet"
    except OSError as error:
        raise ImproperlyConfigured(
            f"MMSERVE_DATA_DIR is {DATA_DIR}: its secret_key cannot be read ({error.strerror})."
        ) from error


def embedded_redis_socket() -> Path:
    """The embedded Redis; outside DATA_DIR where that path is too long for a unix socket (107 bytes)."""
    path = DATA_DIR / "redis" / "redis.sock"
    if len(str(path)) <= 100:
        return path
    digest = hashlib.sha256(str(DATA_DIR).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"mmserve-{os.getuid()}-{digest}" / "redis.sock"


SECRET_KEY = _secret_key()
# Debug pages show source and settings to whoever asks: only for development.
DEBUG = env.bool("MMSERVE_DEBUG", default=False)
# Host headers that are answered; "*" behind a proxy that checks them itself.
ALLOWED_HOSTS = env.list("MMSERVE_ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]", HOST])
# Origins whose forms are trusted, e.g. https://llm.example.org behind a TLS proxy.
CSRF_TRUSTED_ORIGINS = env.list("MMSERVE_CSRF_TRUSTED_ORIGINS", default=[])

# The real servers in place of the embedded ones.
DATABASE_URL = env("DATABASE_URL", default=f"sqlite:///{DATA_DIR / 'mmserve.sqlite3'}")
EMBEDDED_REDIS_SOCKET = embedded_redis_socket()
REDIS_URL = env("REDIS_URL", default=f"unix://{EMBEDDED_REDIS_SOCKET}")
# file:///folder or s3://bucket/prefix that holds model files.
STORAGE_URL = env("MMSERVE_STORAGE_URL", default=f"file://{DATA_DIR / 'models'}")
# Where downloads are kept, so that a retry or a second version does not fetch them again.
CACHE_DIR = Path(env("MMSERVE_CACHE_DIR", default=str(DATA_DIR / "cache"))).resolve()
# What the files of remote versions may take there (bytes; 0: as much as the disk has).
CACHE_BYTES = env.int("MMSERVE_CACHE_BYTES", default=0)
# Where compiled forms of engines are kept (CPU only), to be written by this user alone; empty: engines stay eager.
COMPILED_DIR = env("MMSERVE_COMPILED_DIR", default=str(CACHE_DIR / "compiled"))
# The S3 endpoint of the store and of sources that name none; empty: AWS's own. Keys: AWS_ACCESS_KEY_ID and the like.
S3_ENDPOINT = env("MMSERVE_S3_ENDPOINT", default="")
# Endpoints that a source may name besides, e.g. https://minio.example.org or http://10.0.0.5:9000.
S3_ENDPOINTS = env.list("MMSERVE_S3_ENDPOINTS", default=[])
# Hosts that https:// sources may come from: host, host:port, *.host, or http://host:port for one without TLS.
SOURCE_HOSTS = env.list("MMSERVE_SOURCE_HOSTS", default=[])
# What one fetch may take of the network (bytes a second; 0: no bound).
FETCH_BYTES_PER_S = env.int("MMSERVE_FETCH_BYTES_PER_S", default=0)
# Folders, besides DATA_DIR, from which file:// sources may be read.
SOURCE_ROOTS = [Path(root).resolve() for root in env.list("MMSERVE_SOURCE_ROOTS", default=[])]

# This machine's name in the admin, and what its engines may take of host memory (bytes; 0: 80% of it).
NODE_NAME = env("MMSERVE_NODE_NAME", default=os.uname().nodename)
MEMORY_BYTES = env.int("MMSERVE_MEMORY_BYTES", default=0)
# A node that has not reported for so long (s) is lost: its replicas are given up and placed anew elsewhere.
NODE_LEASE_S = env.float("MMSERVE_NODE_LEASE_S", default=15.0)
# How long an unload or the stop of a node lets running requests finish (s); then they continue elsewhere.
DRAIN_S = env.float("MMSERVE_DRAIN_S", default=30.0)
# An engine that has requests and makes no step for so long hangs (s; one step may be a long prefill) ...
ENGINE_STUCK_S = env.float("MMSERVE_ENGINE_STUCK_S", default=120.0)
# ... and so does one whose heartbeat, from a thread of its own, is missing (s): it is killed and started anew.
ENGINE_SILENT_S = env.float("MMSERVE_ENGINE_SILENT_S", default=10.0)
# A load that has not ended after so long is ended (s): it waits for what does not come.
LOAD_TIMEOUT_S = env.float("MMSERVE_LOAD_TIMEOUT_S", default=1800.0)
# The class that serves, as module:class behind inference.engine.base.Engine; read by the node's engine processes.
ENGINE = env("MMSERVE_ENGINE", default="inference.engine.adapter:VllmEngine")

# Bounds of the gateway.
MAX_BODY_BYTES = env.int("MMSERVE_MAX_BODY_BYTES", default=4 * 2**20)
# How many routing decisions each process writes down a second (of those that failed, as many again; 0: none). The
# last ten thousand are kept in Redis, for a day; never a prompt.
DECISIONS_PER_S = env.float("MMSERVE_DECISIONS_PER_S", default=20.0)
# Whether a request prefers the replica that has seen its prompt's beginning lately (docs/routing.md). It does not where
# that replica has more streams in hand than FACTOR times the mean and SLACK, nor longer than WAIT_S (s); each process
# remembers the last BLOCKS blocks of 256 characters.
AFFINITY = env.bool("MMSERVE_AFFINITY", default=True)
AFFINITY_FACTOR = env.float("MMSERVE_AFFINITY_FACTOR", default=1.25)
AFFINITY_SLACK = env.int("MMSERVE_AFFINITY_SLACK", default=4)
AFFINITY_WAIT_S = env.float("MMSERVE_AFFINITY_WAIT_S", default=0.25)
AFFINITY_BLOCKS = env.int("MMSERVE_AFFINITY_BLOCKS", default=65_536)
# How many bytes of tokenizers (their tokenizer.json) each gateway process keeps loaded, to count a prompt of which it
# is not sure whether it fits into a candidate's context; in memory they take several times that. 0: none is counted.
TOKENIZER_BYTES = env.int("MMSERVE_TOKENIZER_BYTES", default=64 * 2**20)
# Prompts and answers go to logs only if an operator turns this on.
LOG_CONTENT = env.bool("MMSERVE_LOG_CONTENT", default=False)
LOG_LEVEL = env.one_of("MMSERVE_LOG_LEVEL", ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), default="INFO")

INSTALLED_APPS = [
    "daphne",
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "knox",
    "django_rq",
    "django_prometheus",
    "django_structlog",
    "registry",
    "routing",
    "inference",
    "mmserve",
]

MIDDLEWARE = [
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "mmserve.middleware.ApiErrors",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_structlog.middlewares.RequestMiddleware",
    "django_prometheus.middleware.PrometheusAfterMiddleware",
]

ROOT_URLCONF = "mmserve.urls"
ASGI_APPLICATION = "mmserve.asgi.application"
APPEND_SLASH = True

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]

DATABASES = {"default": env.database(DATABASE_URL)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # Several processes write: WAL lets readers go on, IMMEDIATE waits for the writer instead of failing late.
    DATABASES["default"]["OPTIONS"] = {
        "timeout": 20,
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;",
    }
    # A file, as in earnest: SQLite in memory has other locks between threads.
    DATABASES["default"]["TEST"] = {"NAME": DATA_DIR / "test.sqlite3"}
else:
    DATABASES["default"]["CONN_MAX_AGE"] = 60
    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True

CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [REDIS_URL]},
    }
}

RQ_QUEUES = {
    "ops": {"URL": REDIS_URL, "DEFAULT_TIMEOUT": 3600, "SERIALIZER": "rq.serializers.JSONSerializer"}
}
RQ = {
    # Redis is no code channel: only functions named in a table run.
    "JOB_CLASS": "mmserve.ops.TabledJob",
    "WORKER_CLASS": "mmserve.ops.OpsWorker",
}
# What an ops job may be: anything else that somebody writes into Redis is refused.
OPS_JOBS = frozenset({"registry.jobs.import_version", "registry.jobs.verify_version"})

STORAGES = {
    "default": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": DATA_DIR / "files"},
    },
    "models": storage_params(STORAGE_URL, S3_ENDPOINT),
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedStaticFilesStorage"},
}
STATIC_URL = "/static/"
STATIC_ROOT = DATA_DIR / "static"
WHITENOISE_USE_FINDERS = True

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "/admin/login/"
LOGIN_REDIRECT_URL = "/admin/"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = env.bool("MMSERVE_SECURE_COOKIES", default=False)
SECURE_CONTENT_TYPE_NOSNIFF = True

# AccessKey stands in for knox's own token: without this, knox's migrations would make its table all the same.
MIGRATION_MODULES = {"knox": None}
KNOX_TOKEN_MODEL = "mmserve.AccessKey"  # noqa: S105 - a model, not a token
REST_KNOX = {
    "TOKEN_PREFIX": "mms-",
    "AUTH_HEADER_PREFIX": "Bearer",
    "TOKEN_TTL": None,
    "AUTO_REFRESH": False,
    "TOKEN_MODEL": "mmserve.AccessKey",
}

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "mmserve.keys.KeyAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["mmserve.keys.HasManageScope"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["mmserve.parsing.BoundedJSONParser"],
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "mmserve.api_errors.handler",
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "mmserve",
    "DESCRIPTION": "Many LLMs from one Django admin: OpenAI-compatible inference and management.",
    "VERSION": "0.1.0",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "ENFORCE_NON_BLANK_FIELDS": True,
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_NAME_OVERRIDES": {
        "ObjectModelEnum": ["model"],
        "ObjectListEnum": ["list"],
        "PriorityEnum": ["high", "normal", "low"],
        "BreakerStateEnum": ["closed", "open", "half_open"],
    },
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
    "POSTPROCESSING_HOOKS": ["drf_spectacular.hooks.postprocess_schema_enums", "mmserve.schema.add_hot_path"],
}

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False

UNFOLD = {
    "SITE_TITLE": "mmserve",
    "SITE_HEADER": "mmserve",
    "SITE_SUBHEADER": "many models, one server",
    "SITE_SYMBOL": "hub",
    "SHOW_VIEW_ON_SITE": False,
    "SHOW_BACK_BUTTON": True,
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": "mmserve.navigation.favicon"}],
    "STYLES": ["mmserve.navigation.job_styles"],
    "DASHBOARD_CALLBACK": "mmserve.dashboard.dashboard",
    "SIDEBAR": {"show_search": True, "navigation": "mmserve.navigation.navigation"},
}

# Without this structlog prints tracebacks with the values of local variables: keys, bodies.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.filter_by_level,
        structlog.processors.format_exc_info,
        structlog.stdlib.render_to_log_kwargs,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
    cache_logger_on_first_use=True,
)
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"handlers": ["stderr"], "level": LOG_LEVEL},
    "loggers": {
        "daphne.http_protocol": {"level": "WARNING"},
        "django_structlog": {"level": "WARNING"},
        "django.channels.server": {"level": "WARNING"},
    },
}
