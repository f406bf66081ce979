"""What a child process gets of the environment: all that a GPU needs, and nothing that is secret."""

from __future__ import annotations

import pytest

from core.child import engine_environment, environment

NEEDED = [
    "HSA_OVERRIDE_GFX_VERSION", "ONEAPI_DEVICE_SELECTOR", "SYCL_CACHE_PERSISTENT", "ZE_AFFINITY_MASK",
    "NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
    "MESA_VK_DEVICE_SELECT", "OMP_NUM_THREADS", "OMP_PLACES", "KMP_AFFINITY", "GGML_VK_VISIBLE_DEVICES",
    "VK_ICD_FILENAMES", "AMD_LOG_LEVEL", "GPU_MAX_HW_QUEUES", "DRI_PRIME", "XDG_RUNTIME_DIR", "LANG",
    "LC_ALL", "LD_LIBRARY_PATH", "PATH", "HOME", "ROCM_PATH", "LD_PRELOAD", "MUSA_VISIBLE_DEVICES",
    "NEOReadDebugKeys", "CUDA_CACHE_PATH", "CUDA_MPS_PIPE_DIRECTORY", "GGML_CUDA_ENABLE_UNIFIED_MEMORY",
    "TMPDIR", "ONEAPI_ROOT", "HSA_ENABLE_SDMA_BYPASS", "VK_LOADER_DRIVERS_SELECT", "HIP_PATH",
    "OCL_ICD_VENDORS", "TZ",
]  # fmt: skip
SECRET = [
    "HF_TOKEN", "HF_HOME", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "TUNE2CHAT_AUTH", "GRADIO_SERVER_NAME", "OPENAI_API_KEY", "DB_PASSWORD", "PGPASSWORD", "MYSQL_PWD",
    "GITHUB_TOKEN", "GH_PAT", "SSH_AUTH_SOCK", "STRIPE_SECRET", "SENTRY_DSN", "DATABASE_URL",
    "OAUTH_CLIENT_SECRET", "SPACE_ID", "my_api_key", "SIGNING_KEY", "KEY_PASSPHRASE", "SESSION_COOKIE",
    "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "no_proxy", "LLAMA_ARG_HOST", "AIP_HTTP_PORT",
    "PYTHONSTARTUP", "GOOGLE_APPLICATION_CREDENTIALS", "JWT", "MY_JWT", "BEARER", "DB_CREDS", "CREDS",
    "APP_SESSION", "SESSION_ID", "NETRC", "PGPASSFILE", "MASTERKEY", "MASTER_KEY", "APIKEY", "API_KEY_2",
    "KEY1", "SSH_ASKPASS", "ROOT_PASS", "PASSPHRASE", "KUBECONFIG", "TLS_PEM", "REDIS_AUTH",
    "STORAGE_SAS_URL", "NVIDIA_API_KEY",
]  # fmt: skip

SECRET_VALUES = [
    "https://someone:s3cret@example.org/", "https://s3cret@example.org/x", "redis://:s3cret@localhost:6379",
    "hf_abcdefghijkl", "ghp_0123456789abcdef", "github_pat_11AAAA_bbb", "sk-proj-abcdef012345",
    "r8_0123456789", "token=hf_abcdefghijkl", "https://example.org/file?sig=abc&token=def",
    "Server=db;Password=s3cret;", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "-----BEGIN EC PARAMETERS-----", "Bearer abc", "AKIAIOSFODNN7EXAMPLE", "xoxb-123456789", "glpat-abcdefgh",
]  # fmt: skip
HARMLESS_VALUES = [
    "/opt/hf_libraries/lib:/usr/lib", "level_zero:gpu", "sk_SK.UTF-8", "0,1", "https://example.org/a?b=c",
    "cpu,sse4", "user@host", "granularity=fine,compact,1,0", "/home/sk-team-of-two/lib",
]  # fmt: skip


@pytest.mark.parametrize("value", SECRET_VALUES)
def test_a_secret_does_not_travel_under_a_harmless_name(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRROR", value)
    assert "MIRROR" not in engine_environment()


@pytest.mark.parametrize("value", HARMLESS_VALUES)
def test_an_ordinary_value_travels(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETTING", value)
    assert engine_environment()["SETTING"] == value


def test_an_engine_gets_what_a_gpu_needs_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*NEEDED, *SECRET]:
        monkeypatch.setenv(name, "x")
    given = engine_environment()
    assert [name for name in NEEDED if name not in given] == []
    assert [name for name in SECRET if name in given] == []


def test_a_worker_that_runs_others_code_gets_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*NEEDED, *SECRET]:
        monkeypatch.setenv(name, "x")
    assert set(environment()) & {*NEEDED, *SECRET} == {"PATH", "HOME", "LD_LIBRARY_PATH", "TMPDIR"}
