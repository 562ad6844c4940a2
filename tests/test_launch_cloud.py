"""What of launch/ runs in a cloud, as far as this machine can tell: the secret of a pod, the task of SkyPilot."""

import base64
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from launch import pod_secret
from tests.test_launch import HARD, Box

ROOT = Path(__file__).parents[1]
VARIABLES = {"HF_TOKEN": "hf_s3cr3t", "ODD": "two lines\nand $HOME \"quoted\" \\ 'so' äö", "EMPTY": ""}
# Ends as python3 would, and notes its arguments and what its environment has
NOTES = """\
#!{python} -I
import json, os, sys
with open({calls!r}, "a") as calls:
    calls.write(json.dumps([sys.argv[1:], dict(os.environ)]) + "\\n")
if sys.argv[1] == "launch/pod_secret.py":
    sys.stdout.write({said!r})
    sys.exit({status})
"""


@pytest.fixture
def box(tmp_path):
    return Box(tmp_path)


@pytest.fixture
def cluster(tmp_path):
    """A Kubernetes server with one secret, for who has the token; gives its address and a pod's account folder."""
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text("of the pod")
    (account / "namespace").write_text("default")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.path == "/api/v1/namespaces/default/secrets/sew-jax-base"
            allowed = self.headers["Authorization"] == "Bearer of the pod"
            data = {key: base64.b64encode(value.encode()).decode() for key, value in VARIABLES.items()}
            self.send_response(200 if known and allowed else 404 if allowed else 403)
            self.end_headers()
            self.wfile.write(json.dumps({"kind": "Secret", "data": data} if known and allowed else {}).encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", account
        server.shutdown()
        thread.join()


def test_a_pod_reads_its_secret(cluster):
    address, account = cluster
    assert pod_secret.read_secret("sew-jax-base", address, account) == VARIABLES
    with pytest.raises(OSError, match="404"):
        pod_secret.read_secret("sew-jax-other", address, account)
    (account / "token").write_text("of another")
    with pytest.raises(OSError, match="403"):
        pod_secret.read_secret("sew-jax-base", address, account)


def test_out_of_a_cluster_it_is_one_line(tmp_path):
    environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / "launch/pod_secret.py", "name"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and re.fullmatch("error: the secret name cannot be read: .*\n", done.stderr)


def run_pod(box, variables, status=0):
    """What is called in a pod whose cluster gives these variables: (arguments, environment) of each call."""
    said = "".join(f"{key}={value}\0" for key, value in variables.items())
    calls = box.path / "noted"
    notes = NOTES.format(python=sys.executable, calls=os.fspath(calls), said=said, status=status)
    (box.bin / "python3").write_text(notes)
    (box.bin / "env").write_text('#!/bin/sh\nexport "$1"; shift; exec "$@"\n')
    (box.bin / "env").chmod(0o755)
    done = box.launch("gke", "in-pod", "base", "--secret=sew-jax-base", "--", *HARD)
    return done, [json.loads(line) for line in calls.read_text().splitlines()]


def test_the_run_of_a_pod_has_what_the_secret_says(box):
    done, calls = run_pod(box, VARIABLES)
    assert done.returncode == 0, done.stderr
    arguments, environment = calls[-1]
    assert arguments == ["-m", "sew_jax.main", *HARD]
    assert {key: environment[key] for key in VARIABLES} == VARIABLES


def test_a_secret_that_is_not_to_be_had_is_a_crash(box):
    """Which starts all pods again, as a mistake of the user's (2) would not."""
    done, calls = run_pod(box, {}, status=1)
    assert done.returncode == 1 and len(calls) == 1


def test_the_secret_of_a_workload_stands_in_no_command(box):
    (box.path / "secrets").write_text("HF_TOKEN=hf_s3cr3t\n")  # `run` asserts that no call and no line has it
    place = ("--cluster=c", "--zone=z-b", "--image=i")
    done = box.launch("gke", "run", "base", *place, f"--env-file={box.path}/secrets", "--", "x")
    assert done.returncode == 0, done.stderr
    (made,) = [call for call in box.calls() if call[:3] == ["kubectl", "create", "secret"]]
    assert made[3:] == ["generic", "sew-jax-base", f"--from-env-file={box.path}/secrets"]
    (inside,) = [word for call in box.calls() if call[0] == "xpk" for word in call if word.startswith("--command=")]
    assert "--secret=sew-jax-base" in inside and "secrets " not in inside
    done = box.launch("gke", "run", "base", *place, "--env-file=/nowhere", "--", "x")
    assert done.returncode == 2 and "error: --env-file=/nowhere cannot be read" in done.stderr


def task():
    return yaml.safe_load((ROOT / "launch/sky.yaml").read_text("utf-8"))


def run_task(box, part, **variables):
    """What a part of the task calls of python on a machine, with the variables that SkyPilot sets."""
    calls = box.path / "noted"
    calls.unlink(missing_ok=True)
    notes = NOTES.format(python=sys.executable, calls=os.fspath(calls), said="", status=0)
    for program in (box.bin / "python3", box.repository / ".venv/bin/python"):
        program.write_text(notes)
    values = {key: str(value or "") for key, value in (task()["envs"] | task()["secrets"]).items()}
    sky = {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "10.0.0.1"}
    environment = box.environment | values | sky | variables
    done = subprocess.run(["bash", "-c", task()[part]], cwd=box.repository, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line)[0] for line in calls.read_text().splitlines()]


def test_arguments_arrive_by_sky(box):
    several = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    begin = ["-m", "sew_jax.main", "--config=configs/pretrain.py:base", "--workdir=/mnt/sew_jax/my run"]
    arguments = {"ARGUMENTS": shlex.join(HARD), "NAME": "my run"}
    assert run_task(box, "run", **arguments) == [begin + HARD]
    ends = ["--coordinator_address=10.0.0.1:8476", "--num_processes=2", "--process_id=1"]
    assert run_task(box, "run", **arguments, **several) == [begin + HARD + ends]


@pytest.mark.parametrize("extra", ["tpu", "cuda"])
def test_sky_installs_tested_versions_for_the_accelerator(extra, box):
    if extra == "tpu":
        (box.bin / "nvidia-smi").unlink()
        if shutil.which("nvidia-smi"):
            pytest.skip("this machine has GPUs")
    installed = run_task(box, "setup")[-1]
    assert installed[-2:] == ["--constraint=launch/constraints.txt", f".[{extra},gcs]"]
    assert (ROOT / installed[-2].partition("=")[2]).exists()


def test_sky_starts_again_after_a_crash_and_not_after_a_mistake():
    recovery = task()["resources"]["job_recovery"]
    assert recovery["max_restarts_on_errors"] == 0 and {1, 75} <= set(recovery["recover_on_exit_codes"])
    assert 2 not in recovery["recover_on_exit_codes"] and task()["resources"]["use_spot"] is True


def test_no_file_of_launch_holds_or_sources_a_secret():
    for file in (ROOT / "launch").glob("*.sh"):
        for line in file.read_text("utf-8").splitlines():
            assert not re.match(r"\s*(source|\.) ", line) or "common.sh" in line, (file, line)
    assert all(not value for value in task()["secrets"].values())


@pytest.mark.parametrize("name", ["tpu_vm.sh", "gke.sh", "sky.yaml"])
def test_what_no_cloud_has_run_says_so(name, box):
    head = "\n".join((ROOT / "launch" / name).read_text("utf-8").splitlines()[:6])
    assert "EXPERIMENTAL" in head and "has not yet run in a cloud" in head
    row = next(
        line for line in (ROOT / "docs/scaling.md").read_text("utf-8").splitlines() if f"`launch/{name}`" in line
    )
    assert "experimental" in row
    if name.endswith(".sh"):
        assert "EXPERIMENTAL" in box.launch(name.removesuffix(".sh"), "--help").stdout


def test_the_reader_of_secrets_needs_nothing_installed():
    """It runs before the pod's packages are there."""
    source = (ROOT / "launch/pod_secret.py").read_text("utf-8")
    imported = set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE))
    assert imported <= set(sys.stdlib_module_names)
