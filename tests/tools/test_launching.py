"""What launches runs on clusters: its form, what it starts, and when it queues again."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from cascade.cli.console import Status
from cascade.launch import NEEDED
from cascade.training.interrupt import REQUEUE_MARK

Stub = Callable[[str, str], None]


class _Part(BaseModel):
    """A part of a Kubernetes object: the fields that a run needs, and no misspelt ones."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _Named(_Part):
    name: str


class _Variable(_Named):
    value: str


class _Mount(_Named):
    mountPath: str


class _Volume(_Named):
    persistentVolumeClaim: dict[Literal["claimName"], str] | None = None
    configMap: _Named | None = None
    emptyDir: dict[Literal["medium"], Literal["Memory"]] | None = None


class _Container(_Named):
    image: str
    command: list[str]
    args: list[str]
    env: list[_Variable]
    resources: dict[Literal["limits"], dict[str, int]]
    volumeMounts: list[_Mount]


class _Pod(_Part):
    restartPolicy: Literal["Never"]  # podFailurePolicy needs it
    terminationGracePeriodSeconds: int
    containers: list[_Container]
    volumes: list[_Volume]


class _Condition(_Part):
    type: Literal["DisruptionTarget"]
    status: Literal["True"]


class _ExitCodes(_Part):
    containerName: str
    operator: Literal["In", "NotIn"]
    values: list[int]


class _PodRule(_Part):
    action: Literal["FailJob", "FailIndex", "Ignore", "Count"]
    onPodConditions: list[_Condition] | None = None
    onExitCodes: _ExitCodes | None = None


class _Job(_Part):
    parallelism: int
    completions: int
    completionMode: Literal["Indexed", "NonIndexed"]
    backoffLimit: int
    podFailurePolicy: dict[Literal["rules"], list[_PodRule]]
    template: dict[Literal["spec"], _Pod]


class _Replicated(_Named):
    replicas: int
    template: dict[Literal["spec"], _Job]


class _Rule(_Part):
    name: str = Field(pattern="^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    action: Literal["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
    onJobFailureReasons: list[
        Literal[
            "BackoffLimitExceeded",
            "DeadlineExceeded",
            "FailedIndexes",
            "MaxFailedIndexesExceeded",
            "PodFailurePolicy",
        ]
    ]


class _FailurePolicy(_Part):
    maxRestarts: int
    rules: list[_Rule]


class _Set(_Part):
    network: dict[Literal["enableDNSHostnames"], bool]
    failurePolicy: _FailurePolicy
    replicatedJobs: list[_Replicated]


class _JobSet(_Part):
    apiVersion: Literal["jobset.x-k8s.io/v1alpha2"]
    kind: Literal["JobSet"]
    metadata: _Named
    spec: _Set


@pytest.fixture(scope="module")
def files(repository: Path) -> Path:
    """Where they are."""
    return repository / "tools" / "launch"


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Put a program into the path that runs a line of the shell."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))

    def put(name: str, line: str) -> None:
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/bash\n{line}\n")
        program.chmod(0o755)

    return put


@pytest.fixture(scope="module")
def job_set(files: Path) -> _JobSet:
    """The JobSet, every field of which is known."""
    return _JobSet.model_validate(yaml.safe_load((files / "kubernetes.yaml").read_text()))


def test_the_shell_is_sound(files: Path, job_set: _JobSet, tmp_path: Path) -> None:
    script = tmp_path / "pod.sh"
    script.write_text("#!/bin/bash\n" + _container(job_set).args[0])
    for path in (files / "slurm.sbatch", script):
        subprocess.run(["bash", "-n", path], check=True)
        if shutil.which("shellcheck"):
            subprocess.run(["shellcheck", path], check=True)


@pytest.mark.parametrize("status", [0, 1, *Status])
def test_slurm_starts_a_process_a_gpu_and_queues_what_was_preempted(
    files: Path, stub: Stub, tmp_path: Path, status: int
) -> None:
    stub(
        "scontrol", 'if [ "$1" = show ]; then echo first; echo second; else echo "$@" >>"$TOLD"; fi'
    )
    stub("srun", 'shift; SLURM_PROCID=5 SLURM_LOCALID=1 "$@"')
    names = " ".join(f"${name}" for name in ("WORLD_SIZE", *NEEDED))
    stub("python", f'echo "{names} $@" >>"$TOLD"; exit {status}')
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4"}
    done = subprocess.run(
        ["bash", files / "slurm.sbatch", "train", "a b.toml"],
        env={**os.environ, **slurm, "SLURM_JOB_NODELIST": "node[1-2]"},
    )
    assert done.returncode == status
    told = ["8 5 1 4 first 20007 -m cascade train a b.toml"]
    told += ["requeue 7"] if status == Status.REQUEUE else []
    assert (tmp_path / "told").read_text().splitlines() == told


@pytest.mark.parametrize("requeue", [False, True])
@pytest.mark.parametrize("ended", ["0", "1", "by a signal"])
def test_a_pod_tells_a_preemption_from_a_failure(
    job_set: _JobSet, stub: Stub, tmp_path: Path, ended: str, requeue: bool
) -> None:
    torchrun = f'echo "$@" >"$TOLD"; exit {ended}'
    if ended == "by a signal":
        torchrun = (
            'trap \'sleep 0.2; exit 1\' TERM; echo "$@" >"$TOLD"; while :; do sleep 0.05; done'
        )
    stub("torchrun", torchrun)
    if requeue:
        (tmp_path / REQUEUE_MARK).mkdir()
    script, told = _container(job_set).args[0], tmp_path / "told"
    pod = subprocess.Popen(["bash", "-c", script], env={**os.environ, "OUTPUT": str(tmp_path)})
    if ended == "by a signal":
        while not told.is_file():
            time.sleep(0.01)
        pod.send_signal(signal.SIGTERM)
    status = pod.wait(30)
    assert status == (0 if ended == "0" else Status.REQUEUE if requeue else 1)
    assert f"-m cascade train /config/run.toml --set output={tmp_path}" in told.read_text()


def test_the_set_restarts_what_was_preempted_without_counting_it(job_set: _JobSet) -> None:
    job = job_set.spec.replicatedJobs[0].template["spec"]
    evicted, saved = job.podFailurePolicy["rules"]
    assert evicted.action == saved.action == "FailJob"
    assert evicted.onPodConditions
    assert saved.onExitCodes is not None
    assert saved.onExitCodes.values == [Status.REQUEUE]
    assert saved.onExitCodes.containerName == _container(job_set).name
    (rule,) = job_set.spec.failurePolicy.rules
    assert rule.action == "RestartJobSetAndIgnoreMaxRestarts"
    words = _container(job_set).args[0].split()
    flags = {name: words[words.index(name) + 1] for name in ("--nnodes", "--nproc-per-node")}
    limits: dict[str, Any] = _container(job_set).resources["limits"]
    assert flags == {
        "--nnodes": str(job.completions),
        "--nproc-per-node": str(limits["nvidia.com/gpu"]),
    }
    meeting = f"{job_set.metadata.name}-{job_set.spec.replicatedJobs[0].name}-0-0"
    assert f"--rdzv-endpoint {meeting}.{job_set.metadata.name}:" in _container(job_set).args[0]


def _container(job_set: _JobSet) -> _Container:
    return job_set.spec.replicatedJobs[0].template["spec"].template["spec"].containers[0]
