"""The benchmark of a GPU's training: what its one command asks for exists."""

import os
import shlex
import subprocess
from pathlib import Path

from cascade.config.folders import CONFIGS
from cascade_bench.providers import PROVIDERS, known


def test_every_command_names_what_there_is_and_the_user_s_flags_stand_last(
    repository: Path, tmp_path: Path
) -> None:
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\necho "$@"\nexit 1\n')
    stub.chmod(0o755)
    command = [repository / "tools/bench_training.sh", tmp_path / "out", "--device", "cpu"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHON": str(stub)}, capture_output=True, text=True, check=True
    )
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    # One that fails takes no other with it.
    assert len(lines) == done.stderr.count("ended with status 1") > 4
    for line in lines:
        given = dict(zip(line[4::2], line[5::2], strict=True))
        assert line[:4] == ["-m", "cascade", "bench", "train"]
        assert (CONFIGS / f"{given['--network']}.toml").is_file()
        assert known(given["--against"], PROVIDERS)
        assert given["--device"] == "cpu"
    outputs = [line[line.index("--output") + 1] for line in lines]
    assert len(set(outputs)) == len(outputs)
