"""Files in a child process: the same outputs, and one line whatever happens to the child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tflite_files
from PIL import Image

from mobilenet import evaluator, predict, profiler
from mobilenet.errors import UsageError
from mobilenet.runtime import Classifier, interpreter, isolation, micro, worker
from mobilenet.tflite import editor
from mobilenet.tflite import model as tflite_model

pytest.importorskip("tensorflow", reason="TensorFlow's converter makes the files")
HOSTILE = "the file is damaged or hostile"


def content(kind: str = "int8") -> tflite_model.Flatbuffer:
    return tflite_model.read(tflite_files.flatbuffer(kind))


def image(file: tflite_model.Flatbuffer, seed: int = 0) -> Any:
    source, noise = file.tensors[file.inputs[0]], np.random.default_rng(seed)
    if source.dtype == "float32":
        return noise.uniform(-1, 1, source.shape).astype(np.float32)
    return noise.integers(-128, 127, source.shape, np.int8, endpoint=True)


def outputs(runner: Any, file: tflite_model.Flatbuffer, seed: int = 0) -> Any:
    runner.set_tensor(file.inputs[0], image(file, seed))
    runner.invoke()
    return runner.get_tensor(file.outputs[0])


def is_gone(pid: int) -> bool:
    """Whether the process ends within some seconds."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(tflite_files.flatbuffer("int8"))
    return path


def appended(name: str, shapes: dict[str, Any], options: Any = None) -> bytes:
    """The int8 file with one more operator, of constants, whose output nobody reads."""
    schema = tflite_model.schema()
    model = editor.open_flatbuffer(tflite_files.flatbuffer("int8"))
    graph, code, operator = model.subgraphs[0], schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
    code.version = 1
    model.operatorCodes.append(code)
    indices = []
    for label, values in {**shapes, "output": None}.items():
        shape = [1] if values is None else values.shape
        kind = schema.TensorType.INT32 if values is not None else schema.TensorType.INT8
        if values is not None and values.dtype == np.int8:
            kind = schema.TensorType.INT8
        graph.tensors.append(editor.new_tensor(label.encode(), shape, kind))
        graph.tensors[-1].buffer = 0 if values is None else editor.add_buffer(model, values)
        indices.append(len(graph.tensors) - 1)
    operator.opcodeIndex, operator.builtinOptionsType = len(model.operatorCodes) - 1, 0
    *operator.inputs, last = indices
    operator.outputs = [last]
    if options is not None:
        operator.builtinOptionsType, operator.builtinOptions = options
    graph.operators.append(operator)
    return editor.pack_flatbuffer(model)


def crashing() -> bytes:
    """SPLIT without options: the runtime reads them through a null pointer."""
    return appended("SPLIT", {"axis": np.int32(0).reshape(()), "values": np.ones(4, np.int8)})


@pytest.mark.parametrize(("kind", "runtime"), [("int8", "litert"), ("float", "micro")])
def test_outputs_are_those_of_the_runtime_in_this_process(kind: str, runtime: str) -> None:
    if runtime == "micro":
        pytest.importorskip(micro.MODULE)
    file = content(kind)
    child = isolation.Interpreter(file, runtime)
    here = micro.Interpreter(file) if runtime == "micro" else interpreter.make_interpreter(file)
    for seed in range(3):
        expected = outputs(here, file, seed)
        got = outputs(child, file, seed)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
    if runtime == "micro":
        assert child.arena() == here.arena()
    if Path("/proc").is_dir():
        assert "site-packages/tensorflow/" not in Path(f"/proc/{child.pid}/maps").read_text()
        descriptors = [os.readlink(x) for x in Path(f"/proc/{child.pid}/fd").iterdir()]
        assert {name.partition(":")[0] for name in descriptors} == {"socket", "/dev/null"}
    pid = child.pid
    assert os.getsid(pid) == pid  # Ctrl-C of a terminal does not reach it
    del child
    assert is_gone(pid)


def test_inner_tensors_are_those_of_the_runtime_in_this_process() -> None:
    file = content()
    child, here = (
        isolation.open_interpreter(file, x, "file", keep_tensors=True) for x in (True, False)
    )
    for runner in (child, here):
        outputs(runner, file)
    assert len(file.operators) > 5
    for operator in file.operators:
        for index in operator.outputs:
            np.testing.assert_array_equal(child.get_tensor(index), here.get_tensor(index))
    (ours,), (theirs,) = child.get_input_details(), here.get_input_details()
    assert ours["index"] == theirs["index"] and ours["dtype"] == theirs["dtype"]
    assert ours["quantization"] == pytest.approx(theirs["quantization"])
    assert ours["shape"].tolist() == theirs["shape"].tolist()
    with pytest.raises(UsageError, match=r"file: got '\[1, 2\] int8', expected \[1, 32, 32, 3\]"):
        child.set_tensor(file.inputs[0], np.zeros((1, 2), np.int8))


def test_a_classifier_in_a_child_is_the_same_classifier(exported: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3))
    here, child = (Classifier(exported, threads=1, isolated=x) for x in (False, True))
    np.testing.assert_array_equal(child.logits(pixels), here.logits(pixels))


def test_a_child_that_crashes_or_hangs_costs_one_line_and_the_next_call_works() -> None:
    file = content()
    runner = isolation.Interpreter(file, name="strange.tflite", timeout=20)
    first, expected = runner.pid, outputs(runner, file)
    os.kill(first, signal.SIGSEGV)
    with pytest.raises(UsageError, match="SIGSEGV while it ran the file") as caught:
        outputs(runner, file)
    assert str(caught.value).startswith("strange.tflite: expected a file that the runtime can run")
    assert str(caught.value).endswith(HOSTILE)
    np.testing.assert_array_equal(outputs(runner, file), expected)
    second = runner.pid
    assert second != first
    runner._child._timeout = 0.2
    os.kill(second, signal.SIGSTOP)
    with pytest.raises(UsageError, match=r"took more than 0.2 s while it ran"):
        outputs(runner, file)
    assert is_gone(first) and is_gone(second)


def test_a_forked_process_starts_its_own_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies to two processes on one socket would be mixed up."""
    file = content()
    runner = isolation.Interpreter(file)
    first = runner.pid
    monkeypatch.setattr(isolation.os, "getpid", lambda: -1)
    outputs(runner, file)
    assert runner.pid != first


def test_a_file_that_ends_the_runtime_costs_one_line(exported: Path, tmp_path: Path) -> None:
    exported.write_bytes(crashing())
    tflite_model.read(exported)  # the checks do not see it
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(photo)
    expected = f"{exported}: expected .* ended by SIGSEGV while it opened the file"
    with pytest.raises(UsageError, match=expected) as caught:
        predict.run([f"--model={exported}", str(photo)])
    assert caught.value.status == 2 and "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"ended by SIGSEGV while it timed the file"):
        profiler.run([str(exported)])


def test_a_file_that_takes_all_memory_is_refused(exported: Path) -> None:
    """FILL makes 2 GiB of a few bytes; all that the file declares is some kilobytes."""
    schema = tflite_model.schema()
    options = schema.BuiltinOptions.FillOptions, schema.FillOptionsT()
    size, value = np.array([2**31 - 1], np.int32), np.int8(1).reshape(())
    file = tflite_model.read(appended("FILL", {"size": size, "value": value}, options))
    assert worker.memory_limit(file) < 1 << 30
    with pytest.raises(UsageError, match="expected a file that the runtime"):
        isolation.Interpreter(file).invoke()
    small = tflite_model.read(appended("FILL", {"size": size // 2**20, "value": value}, options))
    isolation.Interpreter(small).invoke()


_FAKE = """
import os, socket, struct
s = socket.socket(fileno=0)
def reply(status, size, data=b""):
    _, rest = struct.unpack("<BQ", s.recv(9, socket.MSG_WAITALL))
    s.recv(rest, socket.MSG_WAITALL)
    s.sendall(struct.pack("<BQ", status, size) + data)
"""


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("s.sendall(b'hello')", "isolated: .*gave b'hello' instead of b'ready'.*`isolated=False`"),
        ("os._exit(3)", "isolated: .*it ended with status 3.*`isolated=False`"),
        ("s.sendall(b'ready'); os._exit(0)", f"ended with status 0 while it read.*{HOSTILE}"),
        ("s.sendall(b'ready'); reply(0, 1 << 50)", "gave 1,125,899,906,842,624 bytes instead of 0"),
        ("s.sendall(b'ready'); reply(1, 1 << 50)", "gave 1,125,899,906,842,624 bytes instead of 0"),
        ("s.sendall(b'ready'); reply(7, 0)", "gave 0 bytes"),
        ("s.sendall(b'ready'); reply(1, 9, b'x'); os._exit(0)", "ended with status 0"),
        (r"s.sendall(b'ready'); reply(1, 6, b'\x1b[2J\n\xff')", r"a file: \?\[2J: expected .$"),
    ],
)
def test_a_child_that_replies_anything_else_costs_one_line(
    script: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "_START", _FAKE + script)
    with pytest.raises(UsageError, match=reason) as caught:
        isolation.Interpreter(content(), name="a file")
    assert str(caught.value).isprintable()


def test_a_reply_of_another_shape_costs_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "s.sendall(b'ready'); reply(0, 0); reply(0, 0); reply(0, 9, bytes(9))"
    monkeypatch.setattr(isolation, "_START", _FAKE + script)
    runner = isolation.Interpreter(content())
    with pytest.raises(UsageError, match=f"gave 9 bytes instead of 10 while it ran.*{HOSTILE}"):
        runner.invoke()


def test_without_python_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(UsageError, match=r"isolated: .*/nowhere/python: No such file"):
        isolation.Interpreter(content())


def test_modules_of_the_current_folder_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("numpy", "json", "mobilenet"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    isolation.Interpreter(content())


def test_a_script_without_a_guard_can_be_interrupted_and_leaves_no_process(
    exported: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            import signal
            import numpy as np
            from mobilenet.tflite import model as flatbuffer
            from mobilenet.runtime import isolation
            signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
            file = flatbuffer.read({str(exported)!r})
            runner = isolation.Interpreter(file)
            try:
                print(runner.pid, flush=True)  # inside: the signal may come at once
                while True:
                    runner.invoke()
            except KeyboardInterrupt:
                pass
            runner.set_tensor(file.inputs[0], np.full((1, 32, 32, 3), 50, np.int8))
            runner.invoke()
            print(runner.pid, *runner.get_tensor(file.outputs[0])[0], flush=True)
            while True:
                runner.invoke()
        """)
    )
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, script], start_new_session=True, **pipes) as process:
        first = int(process.stdout.readline())
        os.killpg(process.pid, signal.SIGINT)
        second, *values = map(int, process.stdout.readline().split())
        process.kill()
        assert process.stderr.read() == ""
    assert is_gone(first) and is_gone(second)
    here, file = interpreter.make_interpreter(exported), content()
    here.set_tensor(file.inputs[0], np.full((1, 32, 32, 3), 50, np.int8))
    here.invoke()
    assert values == here.get_tensor(file.outputs[0])[0].tolist()


def test_it_works_without_standard_streams(exported: Path, tmp_path: Path) -> None:
    """Their numbers are free then, and whatever writes to 2 must not reach the child."""
    script, result = tmp_path / "script.py", tmp_path / "result"
    script.write_text(
        textwrap.dedent(f"""
            import os
            import numpy as np
            from mobilenet.runtime import Classifier
            classifier = Classifier({str(exported)!r}, threads=1, isolated=True)
            for number in (0, 1, 2):
                try:
                    os.write(number, b"noise")
                except OSError:
                    pass
            best = classifier.top_k(np.zeros((32, 32, 3), np.uint8), 1)
            open({str(result)!r}, "w").write(best[0][0])
        """)
    )
    command = ["sh", "-c", f'"$0" {script} <&- >&- 2>&-', sys.executable]
    subprocess.run(command, check=True, timeout=60)
    best = Classifier(exported, threads=1).top_k(np.zeros((32, 32, 3), np.uint8), 1)
    assert result.read_text() == best[0][0]


def test_commands_isolate_by_default(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    starts: list[dict[str, Any]] = []
    start = isolation._Child.__init__

    def counted(self: Any, name: str, settings: dict[str, Any]) -> None:
        assert name == str(exported)
        starts.append(settings)
        start(self, name, settings)

    monkeypatch.setattr(isolation._Child, "__init__", counted)
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(photo)
    commands = {
        predict: [f"--model={exported}", str(photo)],
        evaluator: [f"--model={exported}", "--dataset_name=digits", "--limit=3", "--threads=1"],
        profiler: [str(exported)],
    }
    for command, args in commands.items():
        printed = []
        for flag, count in ((), 1), (("--noisolated",), 0):
            starts.clear()
            capsys.readouterr()
            command.run([*flag, *args])
            assert len(starts) == count, command
            printed.append(capsys.readouterr().out)
        if command is predict:
            assert printed[0] == printed[1]


def test_a_keras_model_takes_no_such_flag(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for command, args in ((evaluator, ("--model",)), (profiler, ())):
        for flag in ("--isolated", "--noisolated"):
            with pytest.raises(UsageError, match="--isolated: .*expected a flatbuffer"):
                command.run([flag, *args, str(tmp_path / "model")])
