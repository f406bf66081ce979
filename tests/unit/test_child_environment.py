"""What a child process gets of the environment: all that a GPU needs, and nothing that is secret."""

from __future__ import annotations

import pytest

from chat.child import engine_environment, environment

NEEDED = [
    "HSA_OVERRIDE_GFX_VERSION", "ONEAPI_DEVICE_SELECTOR", "SYCL_CACHE_PERSISTENT", "ZE_AFFINITY_MASK",
    "NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
    "MESA_VK_DEVICE_SELECT", "OMP_NUM_THREADS", "OMP_PLACES", "KMP_AFFINITY", "GGML_VK_VISIBLE_DEVICES",
    "VK_ICD_FILENAMES", "AMD_LOG_LEVEL", "GPU_MAX_HW_QUEUES", "DRI_PRIME", "XDG_RUNTIME_DIR", "LANG",
    "LC_ALL", "LD_LIBRARY_PATH", "PATH", "HOME", "ROCM_PATH", "LD_PRELOAD", "MUSA_VISIBLE_DEVICES",
]  # fmt: skip
SECRET = [
    "HF_TOKEN", "HF_HOME", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "TUNE2CHAT_AUTH", "GRADIO_SERVER_NAME", "OPENAI_API_KEY", "DB_PASSWORD", "PGPASSWORD", "MYSQL_PWD",
    "GITHUB_TOKEN", "GH_PAT", "SSH_AUTH_SOCK", "STRIPE_SECRET", "SENTRY_DSN", "DATABASE_URL",
    "OAUTH_CLIENT_SECRET", "SPACE_ID", "my_api_key", "SIGNING_KEY", "KEY_PASSPHRASE", "SESSION_COOKIE",
    "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "no_proxy", "LLAMA_ARG_HOST", "AIP_HTTP_PORT",
    "PYTHONSTARTUP", "GOOGLE_APPLICATION_CREDENTIALS",
]  # fmt: skip


def test_an_engine_gets_what_a_gpu_needs_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*NEEDED, *SECRET]:
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("MIRROR", "https://someone:s3cret@example.org/")
    given = engine_environment()
    assert [name for name in NEEDED if name not in given] == []
    assert [name for name in [*SECRET, "MIRROR"] if name in given] == []


def test_a_worker_that_runs_others_code_gets_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*NEEDED, *SECRET]:
        monkeypatch.setenv(name, "x")
    assert set(environment()) & {*NEEDED, *SECRET} == {"PATH", "HOME", "LD_LIBRARY_PATH"}
