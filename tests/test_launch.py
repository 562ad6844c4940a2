"""The scripts of launch/: what a dry run prints, what is called without one, and what becomes of a run that ends."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ("local", "gpu_box", "slurm", "tpu_vm", "gke")
PROGRAMS = ["gcloud", "xpk", "kubectl", "docker", "sbatch", "srun", "scontrol", "python3", "nvidia-smi"]
PROGRAMS += ["sudo", "curl", "gcsfuse", "mountpoint"]
SECRETS = {"HF_TOKEN": "hf_s3cr3t", "WANDB_API_KEY": "wandb_s3cr3t"}
# arguments that a shell would take apart
HARD = [
    "--config.data=/data/my speech",
    "--config.compression.squeeze=(1,2)",
    "--config.split=",
    'it\'s $HOME & "a"; `b` \\c *',
]
PLAIN = ["--config.data=/data/my speech", "--config.compression.squeeze=(1,2)"]  # what xpk can pass to GPU nodes
SERVICE = "systemd-run --unit=sew_jax --property=RequiresMountsFor=/mnt/sew_jax"
TPU = ("--zone=z", "--shared=gs://bucket/folder")
SECRET = "kubectl secret/sew-jax-base role/sew-jax-base rolebinding/sew-jax-base"
GKE = ("--cluster=c", "--zone=us-east5-b")

# Notes how it was called and ends as the test says: the statuses of PLAN one after the other, or when it gets SIGTERM
FAKE = """\
#!{python} -IS
import json, os, signal, sys, time
from pathlib import Path
here = Path({here!r})
name = os.path.basename(sys.argv[0])
stops = []
if name in ("python", "srun") and "sew_jax.main" in sys.argv or name == "python3" and "sew_jax.main" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: stops.append(0))
with (here / "calls").open("a") as calls:
    calls.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
plan = here / ("states" if "describe" in sys.argv else "plan")
if "describe" in sys.argv or "sew_jax.main" in sys.argv:
    steps = (plan.read_text().split() if plan.exists() else []) or ["0"]
    plan.write_text(" ".join(steps[1:]))
    if plan.name == "states":
        print(steps[0])
    elif steps[0] == "wait":
        until = time.time() + 100  # a test that forgets its signal must not leave this behind
        while not stops and time.time() < until:
            time.sleep(0.01)
        if stops:
            (here / "saved").touch()
    elif steps[0].startswith("saves-"):
        number, _, status = steps[0].removeprefix("saves-").rpartition("-")
        (here / "work" / "checkpoints" / number).mkdir(parents=True)
        sys.exit(int(status))
    elif steps[0].startswith("unmounts-"):
        (here / "work").rename(here / "away")
        sys.exit(int(steps[0].removeprefix("unmounts-")))
    elif steps[0].startswith("-"):
        os.kill(os.getpid(), -int(steps[0]))
    else:
        sys.exit(int(steps[0]))
if name == "mountpoint":
    sys.exit(1)
if name == "sleep" and sys.argv[1] == "800" and (here / "away").exists():
    (here / "away").rename(here / "work")
"""


class Box:
    """A copy of what the scripts need, with an unfinished environment, and programs that only note their calls."""

    def __init__(self, path):
        self.path, self.repository, self.calls_file = path, path / "sew_jax", path / "calls"
        self.repository.mkdir()
        shutil.copytree(ROOT / "launch", self.repository / "launch")
        for name in ("sew_jax", "configs", ".venv/bin"):
            (self.repository / name).mkdir(parents=True)
        (self.repository / "requirements.txt").touch()
        self.bin = path / "bin"
        self.bin.mkdir()
        fake = FAKE.format(python=sys.executable, here=str(path))
        for file in [*(self.bin / name for name in PROGRAMS), self.repository / ".venv/bin/python"]:
            file.write_text(fake)
            file.chmod(0o755)
        self.environment = {"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(path), "LC_ALL": "C", **SECRETS}

    def command(self, script, *arguments):
        return ["bash", str(self.repository / "launch" / f"{script}.sh"), *arguments]

    def run(self, *command, **options):
        options = {"env": self.environment, "cwd": self.path} | options
        done = subprocess.run(command, **options, capture_output=True, text=True, timeout=30)
        assert not any(secret in done.stdout + done.stderr + repr(self.calls()) for secret in SECRETS.values())
        return done

    def launch(self, script, *arguments, **options):
        return self.run(*self.command(script, *arguments), **options)

    def start(self, script, *arguments, **options):
        options = {"env": self.environment, "cwd": self.path} | options
        # bash can't trap what was ignored before, as Ctrl-C is where tests run in the background
        heed = (
            "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
        )
        command = [sys.executable, "-ISc", heed, *self.command(script, *arguments)]
        return subprocess.Popen(command, **options, stderr=subprocess.PIPE, text=True)

    def plan(self, *statuses):
        (self.path / "plan").write_text(" ".join(map(str, statuses)))

    def calls(self):
        return (
            [json.loads(line) for line in self.calls_file.read_text().splitlines()] if self.calls_file.exists() else []
        )

    def runs(self):
        return [call for call in self.calls() if "sew_jax.main" in call]

    def files(self):
        return sorted(path for path in self.path.rglob("*"))


@pytest.fixture
def box(tmp_path):
    return Box(tmp_path)


def commands(text):
    """The commands of lines `+ ...`, without what comes from the shell or coreutils."""
    lines = [shlex.split(line.removeprefix("+ ")) for line in text.splitlines() if line.startswith("+ ")]
    lines = [line[2:] if line[0] == "env" else line for line in lines]
    return [[Path(line[0]).name, *line[1:]] for line in lines if line[0] not in ("cd", "touch", "rm", "mkdir", "cp")]


# script and its arguments: the commands that must come, each as words that it must hold, in this order
DRY = {
    "local": (
        ["local"],
        [
            "pip --constraint=launch/constraints.txt --requirement=requirements.txt jax",
            "sew_jax.main --config=configs/demo.py",
        ],
    ),
    "local config": (
        ["local", "--extra=tpu", "--", "--config=configs/evaluate.py", *HARD],
        ["pip jax[tpu]", "sew_jax.main --config=configs/evaluate.py"],
    ),
    "gpu_box": (
        ["gpu_box", "--", *HARD],
        ["pip jax[cuda13]", "sew_jax.main --config=configs/pretrain.py:base"],
    ),
    "gpu_box cuda12": (["gpu_box", "--cuda=12", "--", *HARD], ["pip jax[cuda12]", "sew_jax.main"]),
    "slurm": (
        ["slurm", "--nodes=2", "--gpus=4", "--partition=gpu", "--", *HARD],
        [
            "pip jax[cuda13]",
            "sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --requeue --signal=B:USR1@120 --partition=gpu "
            "in-job",
        ],
    ),
    "slurm in-job": (["slurm", "in-job", "--", *HARD], ["srun --cpus-per-task=8 sew_jax.main JAX_PLATFORMS=cuda,cpu"]),
    "tpu create": (
        ["tpu_vm", "create", "pod", "--zone=z", "--project=p", "--type=v5litepod-16"],
        [
            "gcloud queued-resources create pod --node-id=pod --zone=z --project=p --accelerator-type=v5litepod-16 "
            "--spot --runtime-version=v2-alpha-tpuv5-lite"
        ],
    ),
    "tpu setup": (
        ["tpu_vm", "setup", "pod", *TPU],
        ["describe", "ssh --worker=all", "scp --recurse --worker=all pod:sew_jax/", "ssh --worker=all"],
    ),
    "tpu run": (["tpu_vm", "run", "pod", *TPU, "--", *HARD], ["ssh --worker=all", "ssh --worker=0"]),
    "tpu resume": (
        ["tpu_vm", "resume", "pod", *TPU, "--", *HARD],
        [
            "describe pod",
            "delete pod --force --quiet",
            "create pod --spot",
            "describe pod",
            "ssh --worker=all",
            "scp",
            "ssh --worker=all",
            "ssh --worker=all",
            "ssh --worker=0",
        ],
    ),
    "tpu logs": (["tpu_vm", "logs", "pod", "--zone=z"], ["ssh --worker=0"]),
    "tpu stop": (["tpu_vm", "stop", "pod", "--zone=z"], ["ssh --worker=all"]),
    "tpu status": (["tpu_vm", "status", "pod", "--zone=z"], ["describe", "ssh"]),
    "tpu delete": (["tpu_vm", "delete", "pod", "--zone=z"], ["gcloud queued-resources delete pod --force"]),
    "tpu host setup": (
        ["tpu_vm", "on-host-setup", "pod", *TPU],
        [
            "pip --user uv",
            "pip jax[tpu] gcsfs",
            "mkdir",
            "apt-get",
            "chown",
            "systemd-run --unit=sew_jax_mount --property=Type=forking gcsfuse --only-dir=folder bucket /mnt/sew_jax",
        ],
    ),
    "tpu host run": (
        ["tpu_vm", "on-host-run", "pod", "--zone=z", "--shared=10.0.0.2:/share", "--", *HARD],
        ["mkdir", "apt-get", "nfs-common", "mount nfs 10.0.0.2:/share", "chmod", f"{SERVICE} sew_jax.main"],
    ),
    "gke create-cluster": (
        ["gke", "create-cluster", *GKE, "--type=v6e-16", "--count=2", "--bucket=bucket"],
        [
            "xpk cluster create --cluster=c --device-type=v6e-16 --num-slices=2 --spot --default-pool-cpu-num-nodes=1",
            "xpk storage attach --bucket=bucket --mount-point=/mnt/sew_jax --type=gcsfuse",
        ],
    ),
    "gke run": (
        ["gke", "run", "base", *GKE, "--", *HARD],
        ["xpk workload create --workload=base --max-restarts=50 --restart-on-exit-codes=1 --num-slices=1"],
    ),
    "gke run with a secret": (
        ["gke", "run", "base", *GKE, f"--env-file={os.devnull}", "--image=i", "--", *HARD],
        [
            "gcloud get-credentials c",
            f"{SECRET} delete --ignore-not-found",
            f"kubectl create secret generic sew-jax-base --from-env-file={os.devnull}",
            "kubectl create role sew-jax-base --verb=get --resource=secrets --resource-name=sew-jax-base",
            "kubectl create rolebinding sew-jax-base --role=sew-jax-base --serviceaccount=default:xpk-sa",
            "xpk workload create --workload=base",
        ],
    ),
    "gke run on GPUs": (
        ["gke", "run", "base", *GKE, "--type=h100-80gb-8", "--image=i", "--", *PLAIN],
        ["xpk workload create --device-type=h100-80gb-8 --num-nodes=1 --docker-image=i"],
    ),
    "gke in a pod": (
        ["gke", "in-pod", "base", "--", *HARD],
        ["python3 pip --constraint=launch/constraints.txt jax[tpu]", "python3 sew_jax.main"],
    ),
    "gke list": (["gke", "list", *GKE], ["xpk workload list --cluster=c"]),
    "gke logs": (
        ["gke", "logs", "base", *GKE],
        ["gcloud get-credentials c --location=us-east5", "kubectl logs --follow"],
    ),
    "gke delete": (
        ["gke", "delete", "base", *GKE],
        ["xpk workload delete --workload=base", "gcloud get-credentials c", f"{SECRET} delete --ignore-not-found"],
    ),
    "gke delete-cluster": (["gke", "delete-cluster", *GKE], ["xpk cluster delete --cluster=c"]),
}


@pytest.mark.parametrize("case", DRY)
def test_a_dry_run_prints_the_commands_and_runs_none(case, box):
    (script, *arguments), expected = DRY[case]
    before = box.files()
    done = box.launch(script, *arguments, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("+ ") for line in done.stdout.splitlines()), done.stdout
    printed = commands(done.stdout)
    for words, line in zip(expected, printed, strict=True):
        assert set(words.split()) <= set(line), (words, line)
    assert not box.calls() and box.files() == before
    assert box.launch(script, "--dry-run", *arguments).stdout == done.stdout  # wherever it stands


@pytest.mark.parametrize("case", [case for case in DRY if case not in ("slurm in-job", "tpu resume")])
def test_what_is_called_is_what_a_dry_run_prints(case, box):
    (script, *arguments), _ = DRY[case]
    printed = commands(box.launch(script, *arguments, "--dry-run").stdout)
    (box.path / "states").write_text("ACTIVE READY")
    done = box.launch(script, *arguments)
    assert done.returncode == 0, done.stderr
    # questions are asked without a word: which Python it is, whether it is mounted, in which state it is
    asked = [call for call in box.calls() if "-c" not in call[1:2] and call[0] != "mountpoint"]
    asked = [call for call in asked if case == "tpu status" or "describe" not in call]
    printed = [line for line in printed if case == "tpu status" or "describe" not in line]
    printed = [line for line in printed if line[:3] != ["curl", "-fsSL", "-o"] and "/tmp/gcsfuse" not in line[-1]]
    assert asked == printed, done.stderr


def test_what_the_readme_says_can_be_run(box):
    written = re.findall(r"`(launch/\w+\.sh[^`]*)`", (ROOT / "docs/scaling.md").read_text("utf-8"))
    first = [command for command in written if " " in command or "local" in command]
    assert {Path(shlex.split(command)[0]).stem for command in first} == set(SCRIPTS)
    for command in first:
        done = box.run("bash", *shlex.split(command), "--dry-run", cwd=box.repository)
        assert done.returncode == 0 and commands(done.stdout), done.stderr


def test_each_line_of_a_dry_run_can_be_pasted(box):
    for case in ("local config", "gpu_box", "slurm", "tpu run", "gke run"):
        (script, *arguments), _ = DRY[case]
        text = box.launch(script, *arguments, "--dry-run").stdout
        box.calls_file.unlink(missing_ok=True)
        done = box.run("bash", "-c", "".join(f"{line.removeprefix('+ ')}\n" for line in text.splitlines()))
        assert done.returncode == 0, done.stderr
        assert box.calls() == commands(text)


def called(box, program, words):
    """The arguments of the only call of a program that holds some words."""
    (call,) = [call for call in box.calls() if call[0] == program and set(words.split()) <= set(call)]
    return call[1:]


def test_arguments_arrive_under_slurm(box):
    assert box.launch("slurm", "--", *HARD).returncode == 0
    sbatch = called(box, "sbatch", "in-job")
    script = next(index for index, word in enumerate(sbatch) if word.endswith("slurm.sh"))
    spool = shutil.copy(sbatch[script], box.path / "slurm_script")  # Slurm runs a copy
    done = box.run("bash", str(spool), *sbatch[script + 1 :], cwd=box.repository)
    assert done.returncode == 0, done.stderr
    assert called(box, "srun", "sew_jax.main")[-len(HARD) :] == HARD


def test_arguments_arrive_on_tpu_hosts(box):
    assert box.launch("tpu_vm", "run", "pod", *TPU, "--", *HARD).returncode == 0
    (command,) = [word for word in called(box, "gcloud", "--worker=all") if word.startswith("--command=")]
    done = box.run("bash", "-c", command.removeprefix("--command="))  # in the home folder, as by ssh
    assert done.returncode == 0, done.stderr
    service = called(box, "sudo", "--unit=sew_jax")
    assert [word.replace("$$", "$") for word in service[-len(HARD) :]] == HARD
    assert "--workdir=/mnt/sew_jax/pod" in service


@pytest.mark.parametrize("accelerator", ["--type=v6e-8", "--type=h100-80gb-8"])
def test_arguments_arrive_in_pods(accelerator, box):
    hard, environment = (HARD, {}) if "v6e" in accelerator else (PLAIN, {"NNODES": "2", "NODE_RANK": "1"})
    environment |= {"JAX_COORDINATOR_ADDRESS": "first", "JAX_COORDINATOR_PORT": "6002"}  # as xpk sets them
    (box.path / "secrets").write_text("HF_TOKEN=hf_s3cr3t\n")
    done = box.launch("gke", "run", "base", *GKE, accelerator, f"--env-file={box.path}/secrets", "--", *hard)
    assert done.returncode == 0, done.stderr
    (command,) = [word for word in called(box, "xpk", "create") if word.startswith("--command=")]
    command = f"({command.removeprefix('--command=')}) & wait $!"  # as xpk writes it into the pod
    assert box.run("bash", "-c", command, cwd=box.repository, env=box.environment | environment).returncode == 0
    arguments = called(box, "python3", "sew_jax.main")[2:]
    assert arguments[:2] == ["--config=configs/pretrain.py:base", "--workdir=/mnt/sew_jax/base"]
    several = ["--coordinator_address=first:6002", "--num_processes=2", "--process_id=1"]
    assert arguments[2:] == hard + several * ("v6e" not in accelerator)


def test_a_preempted_slice_is_made_again(box):
    (box.path / "states").write_text("SUSPENDED ACTIVE READY")
    done = box.launch("tpu_vm", "resume", "pod", *TPU, "--", *HARD)
    assert done.returncode == 0 and "costs until" in done.stderr, done.stderr
    steps = [call[3:5] for call in box.calls()]
    assert steps[:5] == [["queued-resources", step] for step in ("describe", "delete", "create", "describe")] + [
        ["tpu-vm", "describe"]
    ]
    box.calls_file.unlink()
    (box.path / "states").write_text("ACTIVE READY ACTIVE READY")
    assert box.launch("tpu_vm", "resume", "pod", *TPU, "--", *HARD).returncode == 0
    assert not [call for call in box.calls() if {"create", "delete"} & set(call)]  # what runs stays
    (box.path / "states").write_text("SUSPENDED")
    done = box.launch("tpu_vm", "setup", "pod", *TPU)
    assert done.returncode == 2 and "error: pod is SUSPENDED" in done.stderr


def test_what_costs_is_said_and_spot_unless_told_otherwise(box):
    cluster = ("create-cluster", *GKE, "--bucket=b", "--dry-run")
    for script, arguments, price in (
        ("tpu_vm", ("create", "pod", "--zone=z", "--dry-run"), "on demand"),
        ("gke", cluster, "on-demand"),
    ):
        spot = box.launch(script, *arguments)
        full = box.launch(script, *arguments, "--on-demand")
        for word in ("v6e-8", "spot", "costs until: launch/", "delete"):
            assert word in spot.stderr
        assert "--spot" in spot.stdout and "--spot" not in full.stdout and price in full.stderr


@pytest.mark.parametrize(
    ("plan", "restarts", "runs", "status"),
    [
        ([0], 3, 1, 0),
        ([2], 3, 1, 2),
        ([1, -9, 0], 3, 3, 0),
        ([1, 2], 3, 2, 2),
        ([1, 1, 1, 1], 2, 3, 1),
        ([75, 75, 1, 75, 0], 1, 5, 0),  # storage that does not answer is not counted
        ([75, 2], 0, 2, 2),
    ],
)
def test_gpu_box_restarts_after_a_crash_alone(plan, restarts, runs, status, box):
    box.plan(*plan)
    done = box.launch("gpu_box", f"--restarts={restarts}", "--delay=0", "--", *HARD)
    assert (done.returncode, len(box.runs())) == (status, runs), done.stderr
    assert all(run[-len(HARD) :] == HARD for run in box.runs())
    assert done.stderr.count("goes on from the last checkpoint in 0 s") == runs - 1


@pytest.mark.parametrize("script", [["local"], ["gpu_box"], ["slurm", "in-job"], ["gke", "in-pod", "base"]])
def test_storage_that_does_not_answer_starts_the_run_again(script, box):
    shutil.copy(box.bin / "srun", box.bin / "sleep")  # the pause is none
    box.plan(75, 75, 2)
    done = box.launch(*script, "--", *HARD)
    assert (done.returncode, len(box.runs())) == (2, 3), done.stderr
    assert ["sleep", "10"] in box.calls()


def test_the_pause_grows_while_nothing_is_saved(box):
    shutil.copy(box.bin / "srun", box.bin / "sleep")  # the pause is none
    box.plan("saves-4-75", 75, "saves-8.orbax-checkpoint-tmp-75", "saves-8-75", 75, 75, 75, 0)
    done = box.launch("gpu_box", "--delay=200", "--", *HARD, f"--workdir={box.path}/work")
    assert done.returncode == 0, done.stderr
    pauses = [int(call[1]) for call in box.calls() if call[0] == "sleep"]
    assert pauses == [200, 400, 800, 200, 400, 800, 900]
    said = [line for line in done.stderr.splitlines() if "status 75" in line]
    assert "status 75 - goes on from the last checkpoint in 200 s" in said[0]
    assert "status 75, 3 times without a new checkpoint - goes on from the last checkpoint in 800 s" in said[2]


@pytest.mark.parametrize(("status", "pauses"), [(75, [200, 400, 800]), (1, [200, 200, 400, 800])])
def test_no_run_begins_from_nothing_where_a_mount_is_away(status, pauses, box):
    shutil.copy(box.bin / "srun", box.bin / "sleep")
    box.plan("saves-4-75", f"unmounts-{status}", 0)
    done = box.launch("gpu_box", "--delay=200", "--", *HARD, f"--workdir={box.path}/work")
    assert done.returncode == 0 and len(box.runs()) == 3, done.stderr
    assert [int(call[1]) for call in box.calls() if call[0] == "sleep"] == pauses
    assert "no checkpoint is seen any more, as where a mount is away; looks again in 800 s" in done.stderr


def wait_for_runs(box, count, process):
    while len(box.runs()) < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    assert len(box.runs()) == count


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_gpu_box_lets_the_run_save(number, box):
    box.plan("wait", 0)
    process = box.start("gpu_box", "--delay=0", "--", *HARD)
    wait_for_runs(box, 1, process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 0 and "stopped by a signal, status 0" in stderr, stderr
    assert (box.path / "saved").exists() and len(box.runs()) == 1


def test_gpu_box_can_be_stopped_between_two_runs(box):
    box.plan(1, 0)
    process = box.start("gpu_box", "--delay=60", "--", *HARD)
    for line in process.stderr:
        if "goes on from the last checkpoint in 60 s" in line:
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    assert process.returncode == 1 and len(box.runs()) == 1


def test_a_slurm_job_whose_time_is_up_saves_and_is_queued_again(box):
    for number, queued in ((signal.SIGUSR1, True), (signal.SIGTERM, False)):
        box.calls_file.unlink(missing_ok=True)
        box.plan("wait" if queued else 0)
        environment = box.environment | {"SLURM_JOB_ID": "7"}
        process = box.start("slurm", "in-job", "--", *HARD, env=environment)
        wait_for_runs(box, 1, process)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=90)
        assert process.returncode == 0 and len(box.runs()) == 1, stderr
        assert (["scontrol", "requeue", "7"] in box.calls()) == queued


def test_a_pod_that_is_taken_away_does_not_count_as_done(box):
    box.plan("wait")
    process = box.start("gke", "in-pod", "base", "--", *HARD)
    wait_for_runs(box, 1, process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 42 and (box.path / "saved").exists(), stderr
    for status in (0, 1, 2):
        box.plan(status)
        assert box.launch("gke", "in-pod", "base", "--", *HARD).returncode == status


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_nothing(script, box):
    assert os.access(ROOT / "launch" / f"{script}.sh", os.X_OK)
    done = box.launch(script, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: launch/{script}.sh") and not done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 130
    done = box.launch(script)
    if script == "local":  # has a default
        assert done.returncode == 0 and "--config=configs/demo.py" in box.runs()[0]
    else:
        assert done.returncode == 2 and done.stderr.startswith("usage: ") and not done.stdout and not box.calls()


BAD = {
    "unknown flag": (["gpu_box", "--cudda=12", "--", "x"], "--cudda is unknown"),
    "missing --": (["local", "--config.data=x"], "what is for sew_jax follows after --"),
    "no value": (["slurm", "--nodes", "--", "x"], "--nodes needs a value"),
    "stray word": (["gpu_box", "now", "--", "x"], "'now' is not understood"),
    "stray word for slurm": (["slurm", "now", "--", "x"], "'now' is not understood"),
    "unknown command": (["tpu_vm", "make", "pod", "--zone=z"], "'make' is no command"),
    "two names": (["tpu_vm", "delete", "pod", "other", "--zone=z"], "'other' is not understood"),
    "no zone": (["tpu_vm", "create", "pod"], "--zone is missing"),
    "no storage": (["tpu_vm", "setup", "pod", "--zone=z", "--shared=bucket"], "--shared=bucket is no storage"),
    "unknown type": (["tpu_vm", "create", "pod", "--zone=z", "--type=v9-8"], "--type=v9-8 has no known software"),
    "no cluster": (["gke", "list", "--zone=z"], "--cluster and --zone are needed"),
    "no bucket": (["gke", "create-cluster", *GKE], "--bucket is missing"),
    "a name too many": (["gke", "delete-cluster", "base", *GKE], "'base' is not understood"),
    "quotes for GPU pods": (["gke", "run", "b", *GKE, "--type=h100-80gb-8", "--", *HARD], "xpk can't pass quotes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_usage_is_one_line_and_status_2(case, box):
    (script, *arguments), message = BAD[case]
    done = box.launch(script, *arguments)
    assert done.returncode == 2 and not done.stdout, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("+ ")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], done.stderr
    assert not any(call[0] in ("gcloud", "sbatch", "xpk") for call in box.calls())


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("python3", ["local"]),
        ("nvidia-smi", ["gpu_box", "--", "x"]),
        ("sbatch", ["slurm", "--", "x"]),
        ("gcloud", ["tpu_vm", "status", "pod", "--zone=z"]),
        ("xpk", ["gke", "list", *GKE]),
    ],
)
def test_a_missing_tool_is_named(tool, arguments, box):
    bare = box.path / "bare"
    bare.mkdir()
    for name in ("bash", "cat", "dirname", "env", "touch"):
        (bare / name).symlink_to(shutil.which(name))
    environment = box.environment | {"PATH": str(bare)}
    done = box.launch(*arguments, env=environment)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tool} is missing; "), done.stderr
    assert done.stderr.count("\n") == 1
    assert box.launch(*arguments, "--dry-run", env=environment).returncode == 0  # needs none of them


def test_shellcheck():
    beside = Path(sys.executable).with_name("shellcheck")
    program = shutil.which("shellcheck") or (str(beside) if beside.exists() else None)
    if program is None:
        pytest.skip("shellcheck is not installed")
    files = sorted((ROOT / "launch").glob("*.sh"))
    done = subprocess.run([program, *files], cwd=ROOT / "launch", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
