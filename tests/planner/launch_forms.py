"""One configuration written down in every form people launch it in, differently for each seed."""

from __future__ import annotations

import json
import random
import shlex
from collections.abc import Callable, Sequence

import yaml

# (names, value): None marks a switch. The same server whatever its form.
FLAGS: tuple[tuple[tuple[str, ...], str | None], ...] = (
    (("--model-path", "--model"), "deepseek-ai/DeepSeek-R1"),
    (("--trust-remote-code",), None),
    (("--tp-size", "--tp", "--tensor-parallel-size"), "16"),
    (("--dp-size", "--dp", "--data-parallel-size"), "16"),
    (("--enable-dp-attention",), None),
    (("--nnodes",), "2"),
    (("--mem-fraction-static",), "0.82"),
    (("--max-running-requests",), "1024"),
    (("--chunked-prefill-size",), "65536"),
    (("--kv-cache-dtype",), "fp8_e4m3"),
    (("--attention-backend",), "flashmla"),
    (("--speculative-algorithm", "--speculative-algo"), "EAGLE"),
    (("--speculative-num-steps",), "3"),
    (("--speculative-eagle-topk",), "1"),
    (("--speculative-num-draft-tokens",), "4"),
    (("--schedule-conservativeness",), "0.3"),
    (("--preferred-sampling-params",), '{"top_p": 0.95, "stop": ["it\'s"]}'),
    (("--context-length",), "32768"),
)
RANK = ["--node-rank", "0", "--dist-init-addr", "n0:5000"]
MODULE = ["python3", "-m", "sglang.launch_server"]


def plain_words() -> list[str]:
    """Return the server's words as SGLang gets them."""
    return [word for names, value in FLAGS for word in (names[0], *([] if value is None else [value]))]


class Writer:
    """Writes the configuration; `dice` decides everything that may differ."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.lines: list[str] = []

    def pairs(self) -> list[tuple[str, str | None]]:
        """Return the flags in any order, each by any of its names."""
        pairs = [(self.dice.choice(names), value) for names, value in FLAGS]
        self.dice.shuffle(pairs)
        return pairs

    def words(self) -> list[str]:
        """Return the words in any order, values glued with = now and then."""
        found: list[str] = []
        for name, value in self.pairs():
            if value is None:
                found.append(name)
            elif self.dice.random() < 0.3:
                found.append(f"{name}={value}")
            else:
                found += [name, value]
        return found

    def quoted(self, value: str) -> str:
        """Return a value quoted for a shell in any way that keeps it."""
        ways = [shlex.quote(value)]
        if not set(value) & set('"$`\\'):
            ways.append(f'"{value}"')
        if not set(value) & set("'"):
            ways.append(f"'{value}'")
        return self.dice.choice(ways)

    def valued(self, name: str, value: str) -> str:
        """Return a value as a shell script holds it: literal, a variable set before, a default, arithmetic."""
        variable = name.strip("-").replace("-", "_").upper()
        way = self.dice.randrange(6)
        if way == 0:
            self.lines.append(f"{variable}={self.quoted(value)}")
            return self.dice.choice([f'"${variable}"', f'"${{{variable}}}"'])
        if way == 1 and not set(value) & set("\"'{} "):
            return f"${{{variable}_UNSET:-{value}}}"
        if way == 2 and value.isdecimal() and int(value) % 2 == 0:
            self.lines.append(f"export HALF_{variable}={int(value) // 2}; TWO=2")
            return f"$((HALF_{variable} * ${{TWO}}))"
        if way == 3 and not set(value) & set("\"'{} "):
            self.lines.append(f"{variable}_X=${{{variable}_Y:-{value}}}")
            return f"${variable}_X"
        return self.quoted(value)

    def shell_words(self) -> list[str]:
        """Return the flags as shell text, one an element; what they need stands in `lines`."""
        found = []
        for name, value in self.pairs():
            glue = "=" if self.dice.random() < 0.3 else " "
            found.append(name if value is None else f"{name}{glue}{self.valued(name, value)}")
        return found

    def wrapped(self, pieces: Sequence[str], indent: str = "") -> str:
        """Return pieces as one command, continued over lines now and then."""
        text = ""
        for piece in pieces:
            text += f" \\\n{indent}  {piece}" if self.dice.random() < 0.5 else f" {piece}"
        return text

    def before(self) -> str:
        """Return the lines the words need, with noise that changes nothing."""
        noise = [
            "# a comment with 'an open quote",
            'EXTRA=""',
            "set -euo pipefail",
            "echo 'starting sglang'",
            "umask 022",
        ]
        lines = [*self.lines, *self.dice.sample(noise, 2)]
        return "#!/bin/bash\n" + "\n".join(lines) + "\n"

    def extra(self) -> str:
        """Return a variable that is empty, or nothing."""
        self.lines.append('NOTHING=""')
        return self.dice.choice(["", "", " $NOTHING", " ${NOTHING:+--tp 99}"])


def shell(seed: int) -> str:
    w = Writer(seed)
    command = w.wrapped([*w.shell_words(), *RANK]) + w.extra()
    return (
        w.before()
        + " ".join(MODULE)
        + command
        + w.dice.choice(["", " &", " > log 2>&1", " 2>&1 | tee log"])
        + "\nwait\n"
    )


def shell_array(seed: int) -> str:
    w = Writer(seed)
    words = w.shell_words()
    half = w.dice.randrange(len(words))
    first, second = "\n  ".join(words[:half]), " ".join(words[half:])
    last = " ".join(RANK)
    return f'{w.before()}ARGS=(\n  {first}\n)\nARGS+=({second})\nexec {" ".join(MODULE)} "${{ARGS[@]}}" {last}\n'


def shell_function(seed: int) -> str:
    w = Writer(seed)
    command = w.wrapped([*w.shell_words(), "--node-rank", "$1", "--dist-init-addr", '"$2"'])
    called = "start 0 n0:5000"
    if w.dice.random() < 0.5:
        called = 'NODE=0\nif [ "$NODE" -eq 0 ]; then\n  start 0 n0:5000\nelse\n  echo none\nfi'
    return f"{w.before()}start() {{\n  {' '.join(MODULE)}{command}\n}}\n{called}\n"


def shell_inner(seed: int) -> str:
    """A command inside a double-quoted bash -c: outer variables first, inner quotes kept."""
    w = Writer(seed)
    pairs = [(n, v) for n, v in w.pairs() if v is None or not set(v) & set("\"'")]
    w.lines.append("PORT=30000")
    words = [n if v is None else f"{n} {w.dice.choice([v, repr(v)])}" for n, v in pairs]
    odd = "--preferred-sampling-params '" + json.dumps(json.loads(FLAGS[16][1] or "")).replace("'", "'\\\\''") + "'"
    odd = odd.replace('"', '\\"')
    tail = "--node-rank \\$SLURM_PROCID --dist-init-addr n0:5000 --port '$PORT'"
    inner = f"{' '.join(MODULE)} {' '.join([*words, odd])} {tail}"
    return f'{w.before()}srun bash -c "{inner}"\n'


def heredoc(seed: int) -> str:
    w = Writer(seed)
    command = w.wrapped([*(shlex.quote(word) for word in w.words()), *RANK])
    w.lines.append("")
    marker = w.dice.choice(["'EOF'", "EOF", "-'EOF'"])
    end = "EOF"
    body = f"{' '.join(MODULE)}{command}"
    return f"{w.before()}cat > inner.sh <<{marker}\n{body}\n{end}\nbash inner.sh\n"


def docker(seed: int) -> str:
    w = Writer(seed)
    command = w.wrapped([*w.shell_words(), *RANK])
    run = "docker run --gpus all --shm-size 32g --network=host -e NCCL_DEBUG=INFO --env=HF_HUB_OFFLINE=1 -v /m:/m"
    return f"{w.before()}{run} \\\n  lmsysorg/sglang:v0.5.23 {' '.join(MODULE)}{command}\n"


def slurm(seed: int) -> str:
    w = Writer(seed)
    words = [word for word in w.shell_words() if not word.startswith("--nnodes")]
    command = w.wrapped(
        [*words, "--nnodes $SLURM_NNODES", "--node-rank ${SLURM_PROCID}", "--dist-init-addr $HEAD:5000"]
    )
    head = (
        "#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --gpus-per-node=8\n" + "HEAD=$(scontrol show hostnames | head -n1)\n"
    )
    return head + "\n".join(w.lines) + f"\nsrun --export=ALL {' '.join(MODULE)}{command}\n"


def compose(seed: int) -> str:
    w = Writer(seed)
    words = [word.replace("$", "$$") for word in [*MODULE, *w.words(), *RANK]]
    at = next((i for i, word in enumerate(words) if word == "16"), None)
    if at is not None:
        words[at] = "${SIZE_UNSET:-16}"
    command: object = (
        words if w.dice.random() < 0.5 else shlex.join(words).replace("'${SIZE_UNSET:-16}'", "${SIZE_UNSET:-16}")
    )
    service = {"image": "lmsysorg/sglang:v0.5.23", "command": command, "environment": ["NCCL_DEBUG=INFO"]}
    if w.dice.random() < 0.5 and isinstance(command, list):
        service = {**service, "entrypoint": command[:3], "command": command[3:]}
    return yaml.safe_dump({"services": {"db": {"image": "postgres:16", "command": ["postgres"]}, "sglang": service}})


def _container(w: Writer, words: list[str]) -> dict[str, object]:
    """Return a container that starts the words: as a list, through a shell, or with values in its environment."""
    way = w.dice.randrange(3)
    base: dict[str, object] = {"name": "sglang", "image": "lmsysorg/sglang:v0.5.23"}
    if way == 0:
        return {**base, "command": words[:3], "args": words[3:]}
    if way == 1:
        script = (
            "set -e\ncd /models\n"
            + " ".join(shlex.quote(word) for word in words[:3])
            + w.wrapped([word if word.startswith("$(") else shlex.quote(word) for word in words[3:]])
        )
        return {**base, "command": ["/bin/bash", "-c"], "args": [script + "\n"]}
    changed = ["$(SIZE)" if word == "16" else word for word in words]
    return {**base, "command": changed, "env": [{"name": "SIZE", "value": "16"}, {"name": "A", "value": "b"}]}


def kubernetes(seed: int) -> str:
    w = Writer(seed)
    pod = {
        "containers": [
            {"name": "side", "image": "busybox", "args": ["sleep"]},
            _container(w, [*MODULE, *w.words(), *RANK]),
        ]
    }
    service = {"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 30000}]}}
    workload = {"apiVersion": "apps/v1", "kind": "StatefulSet", "spec": {"template": {"spec": pod}}}
    return yaml.safe_dump_all([service, workload])


def leader_worker_set(seed: int) -> str:
    w = Writer(seed)
    words = [*MODULE, *w.words(), "--node-rank", "$(LWS_WORKER_INDEX)", "--dist-init-addr", "$(LWS_LEADER_ADDRESS):1"]
    for at, word in enumerate(words):
        if word == "2" and words[at - 1] == "--nnodes":
            words[at] = "$(LWS_GROUP_SIZE)"
    spec = {"containers": [_container(w, words)]}
    template = {"size": 2, "leaderTemplate": {"spec": spec}, "workerTemplate": {"spec": spec}}
    document = {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "spec": {"leaderWorkerTemplate": template},
    }
    return yaml.safe_dump(document)


def ome(seed: int) -> str:
    w = Writer(seed)
    words = [
        *MODULE,
        *w.words(),
        "--node-rank",
        "$(OME_INSTANCE_POD_RANK)",
        "--dist-init-addr",
        "$(OME_LEADER_ADDRESS):1",
    ]
    runner = {"runner": _container(w, words)}
    spec = {"engineConfig": {"leader": runner, "worker": {"size": 1, **runner}}}
    return yaml.safe_dump({"apiVersion": "ome.io/v1beta1", "kind": "ClusterServingRuntime", "spec": spec})


def dynamo(seed: int) -> str:
    w = Writer(seed)
    own = w.dice.choice([["--dyn-tool-call-parser", "deepseek_v3"], ["--dyn-reasoning-parser=deepseek_r1"], []])
    words = [word for word in w.words() if not word.startswith("--nnodes")]
    flat = words if "2" not in words else [word for word in words if word != "2"]
    main = {
        "image": "nvcr.io/nvidia/ai-dynamo/sglang-runtime:0.7.0",
        "command": ["python3", "-m", "dynamo.sglang"],
        "args": [*own, *flat],
    }
    service = {"multinode": {"nodeCount": 2}, "extraPodSpec": {"mainContainer": main}}
    document = {
        "apiVersion": "nvidia.com/v1alpha1",
        "kind": "DynamoGraphDeployment",
        "spec": {"services": {"worker": service}},
    }
    return yaml.safe_dump(document)


def systemd(seed: int) -> str:
    w = Writer(seed)
    lines, words = ["[Service]"], []
    for name, value in w.pairs():
        words.append(name)
        if value is not None and value.isdecimal() and w.dice.random() < 0.4:
            variable = name.strip("-").replace("-", "_").upper()
            lines.append(f'Environment="{variable}={value}"')
            words.append(w.dice.choice([f"${variable}", f"${{{variable}}}"]))
        elif value is not None:
            words.append('"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"')
    glue = [word if w.dice.random() < 0.6 else f"\\\n  {word}" for word in [*words, *RANK]]
    return "\n".join(lines) + f"\nExecStart=/usr/bin/python3 -m sglang.launch_server {' '.join(glue)}\nRestart=always\n"


def skypilot(seed: int) -> str:
    w = Writer(seed)
    words = [word for word in w.shell_words() if not word.startswith(("--nnodes", "--tp", "--tensor"))]
    tail = ["--tp $TP", "--nnodes $SKYPILOT_NUM_NODES", "--node-rank ${SKYPILOT_NODE_RANK}", "--dist-init-addr $HEAD:5"]
    command = w.wrapped([*words, *tail])
    lines = "\n".join([*w.lines, "TP=$(($SKYPILOT_NUM_GPUS_PER_NODE * $SKYPILOT_NUM_NODES))"])
    run = f"{lines}\n{' '.join(MODULE)}{command}\n"
    document = {"resources": {"accelerators": w.dice.choice(["H200:8", {"H200": 8}])}, "num_nodes": 2, "run": run}
    return yaml.safe_dump(document)


def _settings(w: Writer) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in w.pairs():
        key = name.removeprefix("--")
        key = key.replace("-", "_") if w.dice.random() < 0.3 else key
        found[key] = True if value is None else int(value) if value.isdecimal() else value
    return found


def own_config(seed: int) -> str:
    return yaml.safe_dump(_settings(Writer(seed)), sort_keys=False)


def srt_slurm(seed: int) -> str:
    w = Writer(seed)
    settings = {k: v for k, v in _settings(w).items() if k not in ("nnodes", "model-path", "model_path", "model")}
    document = {
        "model": {"path": "deepseek-ai/DeepSeek-R1", "container": "lmsysorg/sglang:v0.5.23"},
        "resources": {"agg_nodes": 2, "agg_workers": 1, "gpus_per_node": 8},
        "backend": {"type": "sglang", "sglang_config": {"aggregated": settings}},
    }
    return yaml.safe_dump(document, sort_keys=False)


def dockerfile(seed: int) -> str:
    w = Writer(seed)
    if w.dice.random() < 0.5:
        return f"FROM lmsysorg/sglang:v0.5.23\nENV A=b\nCMD {json.dumps([*MODULE, *w.words(), *RANK])}\n"
    words = [shlex.quote(word) for word in [*MODULE, *w.words(), *RANK]]
    return f"FROM lmsysorg/sglang:v0.5.23\nCMD {' '.join(words[:9])} \\\n  {' '.join(words[9:])}\n"


def markdown(seed: int) -> str:
    return f"# How to launch\n\nIt's easy, don't worry:\n\n```bash\n{shell(seed)}```\n\nThen `curl` it.\n"


# name: (file name, writer, whether a real bash can run it as it stands)
FORMS: dict[str, tuple[str, Callable[[int], str], bool]] = {
    "shell": ("run.sh", shell, True),
    "shell array": ("run.sh", shell_array, True),
    "shell function": ("run.sh", shell_function, True),
    "bash -c": ("run.sh", shell_inner, True),
    "here-document": ("run.sh", heredoc, True),
    "docker": ("docker.sh", docker, True),
    "slurm": ("job.sbatch", slurm, False),
    "compose": ("compose.yaml", compose, False),
    "kubernetes": ("k8s.yaml", kubernetes, False),
    "LeaderWorkerSet": ("lws.yaml", leader_worker_set, False),
    "OME": ("runtime.yaml", ome, False),
    "Dynamo": ("deploy.yaml", dynamo, False),
    "systemd": ("sglang.service", systemd, False),
    "SkyPilot": ("sky.yaml", skypilot, False),
    "--config": ("sglang.yaml", own_config, False),
    "srt-slurm": ("recipe.yaml", srt_slurm, False),
    "Dockerfile": ("Dockerfile", dockerfile, False),
    "Markdown": ("README.md", markdown, False),
}
