"""`federated simulate` with real strategies of Flower, on drawn lesions."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dermedge.data.table import read_table
from dermedge.federated.client import Client, build_network
from dermedge.federated.host import ClientHost, make_request
from dermedge.federated.options import FederatedOptions
from dermedge.federated.partition import Partition, divide
from dermedge.federated.report import FederatedReport
from dermedge.federated.rounds import Server
from dermedge.federated.simulate import make_local_grid, simulate_federated
from dermedge.federated.tensors import from_bytes, to_bytes
from dermedge.models import load_model_folder
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.spec import Task
from support import small
from support.command import dermedge
from support.federated import needs_flower, options

pytestmark = needs_flower
TASKS = (Task("malignancy", "binary"),)
PARTITION = Partition(clients=3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def finished(lesions: Path, cache: Path, tmp_path_factory) -> tuple[Path, FederatedReport]:
    out = tmp_path_factory.mktemp("federated") / "run"
    return out, simulate_federated(
        {"all": lesions}, out, options(), partition=PARTITION, cache=cache
    )


@pytest.fixture
def hosts(lesions: Path, cache: Path, tmp_path: Path) -> dict[str, ClientHost]:
    return {
        name: ClientHost(name, table, tmp_path / name, cache=cache, clear=True)
        for name, table in divide(read_table(lesions), PARTITION).items()
    }


def serve(hosts: dict[str, ClientHost], folder: Path, given: FederatedOptions) -> Server:
    server = Server(make_local_grid(hosts), given, clients=len(hosts), folder=folder)
    server.run()
    return server


def test_the_report_compares_local_pooled_and_federated(finished) -> None:
    out, report = finished
    clients = ["client-1", "client-2", "client-3", "all"]
    assert {(row.model, row.client) for row in report.results} == {
        (model, name) for model in ("local", "pooled", "federated") for name in clients
    }
    (whole,) = (r for r in report.results if (r.model, r.client) == ("federated", "all"))
    assert whole.scores.cases == 12
    assert whole.scores.metrics["malignant_auroc"].low is not None
    assert {group.column for group in whole.subgroups} == {"fitzpatrick", "sex"}
    assert len(report.scores) == 3 and len(report.rounds) == 2
    assert FederatedReport.from_json(json.loads((out / "federated.json").read_text())) == report
    page = (out / "federated.html").read_text()
    assert "3 clients, 2 rounds" in page and "client-2" in page and "<script" not in page


def test_the_result_is_a_model_folder_with_the_kept_weights(finished, lesions) -> None:
    out, report = finished
    model = load_model_folder(out)
    assert model.spec.lineage["federated"]["clients"] == 3
    assert len(model.training_images) == 68
    start, _ = build_network(options(), TASKS)
    for name, tensor in start.state_dict().items():
        same = bool((tensor == model.module.state_dict()[name]).all())
        assert same is (not name.startswith("heads.") or report.best_round == 0), name


def test_only_the_head_travels(finished) -> None:
    _, report = finished
    width = build_network(options(), TASKS)[0].backbone.num_features_out
    assert report.parameters == width + 1
    assert report.bytes < 4 * report.parameters + 300
    assert [entry["sent"] for entry in report.rounds] == [3 * report.bytes] * 2
    assert [entry["received"] for entry in report.rounds] == [3 * report.bytes] * 2


def test_a_round_of_fedavg_is_the_mean_weighted_by_train_images(hosts, tmp_path) -> None:
    server = serve(hosts, tmp_path, options(rounds=1))
    module, _ = build_network(options(), TASKS)
    start = to_bytes({n: t.numpy() for n, t in module.state_dict().items() if "heads" in n})
    request = make_request("train", options(rounds=1), TASKS, round=1, proximal=0.0)
    answers = [host.answer(request, start) for host in hosts.values()]
    rows = np.array([reply["rows"] for reply, _ in answers])
    for name, array in server.state.arrays.items():
        parts = [from_bytes(weights)[name] for _, weights in answers]
        expected = np.average(parts, axis=0, weights=rows)
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("strategy", ["fedprox", "fedadam"])
def test_the_other_strategies_give_other_weights(strategy, hosts, tmp_path) -> None:
    plain = serve(hosts, tmp_path / "a", options()).state.arrays
    other = serve(hosts, tmp_path / "b", options(strategy=strategy, proximal=5.0)).state.arrays
    assert all(np.isfinite(array).all() for array in other.values())
    assert any(not np.allclose(plain[name], other[name]) for name in plain)


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_an_interrupted_training_continues_to_the_same_weights(strategy, hosts, tmp_path) -> None:
    given = options(rounds=3, strategy=strategy)
    whole = serve(hosts, tmp_path / "whole", given).state

    class Interrupted(Exception):
        pass

    def interrupt(done: int, total: int, note: str) -> None:
        if done == 2:
            raise Interrupted

    server = Server(
        make_local_grid(hosts), given, clients=3, folder=tmp_path / "half", progress=interrupt
    )
    with pytest.raises(Interrupted):
        server.run()
    again = serve(hosts, tmp_path / "half", given).state
    assert [entry["round"] for entry in again.history] == [1, 2, 3]
    assert again.scores == whole.scores
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name])


class Broken(ClientHost):
    """A client whose weights are not finite."""

    def answer(self, request, weights):
        reply, sent = super().answer(request, weights)
        if request["do"] == "train":
            sent = to_bytes({name: np.nan * array for name, array in from_bytes(sent).items()})
        return reply, sent


def broken(hosts: dict[str, ClientHost]) -> dict[str, ClientHost]:
    bad = hosts["client-2"]
    return {
        **hosts,
        "client-2": Broken(bad.name, bad.data, bad.folder, cache=bad.cache, clear=True),
    }


def test_a_round_completes_without_a_client_that_sends_nan(hosts, tmp_path) -> None:
    server = serve(broken(hosts), tmp_path, options())
    for entry in server.state.history:
        assert entry["clients"] == ["client-1", "client-3"]
        assert "not finite" in entry["excluded"]["client-2"]
    assert all(np.isfinite(array).all() for array in server.state.arrays.values())


def test_a_round_fails_with_the_name_of_the_client_if_all_are_needed(hosts, tmp_path) -> None:
    with pytest.raises(DataError, match=r"Round 1 has usable weights of 2 .*'client-2': .*finite"):
        serve(broken(hosts), tmp_path, options(min_clients=3))


def test_fedbn_keeps_batchnorm_at_the_client(lesions, tmp_path) -> None:
    out = tmp_path / "run"
    given = options(train="all", fedbn=True, rounds=1)
    report = simulate_federated({"all": lesions}, out, given, partition=Partition(clients=2))
    one, two = (load_file(out / "models" / f"client-{n}" / "weights.safetensors") for n in (1, 2))
    norms = {name for name in one if "running_mean" in name}
    differing = {name for name in one if not np.array_equal(one[name], two[name])}
    assert norms <= differing
    assert "heads.malignancy.weight" not in differing
    assert report.parameters < sum(array.size for array in one.values())
    assert not (out / "weights.safetensors").exists()


def test_the_whole_network_travels_on_request(lesions, tmp_path) -> None:
    given = options(train="all", rounds=1)
    report = simulate_federated({"all": lesions}, tmp_path, given, partition=Partition(clients=2))
    assert report.parameters > 100_000
    assert load_model_folder(tmp_path).spec.name == "test_efficientnet-federated"


def test_differential_privacy_keeps_its_budget(lesions, cache, tmp_path) -> None:
    pytest.importorskip("opacus")
    given = options(epsilon=4.0, delta=1e-3)
    report = simulate_federated(
        {"all": lesions}, tmp_path / "run", given, partition=Partition(clients=2), cache=cache
    )
    spent = report.rounds[-1]["epsilon"]
    assert set(spent) == {"client-1", "client-2"}
    assert all(3.0 < value <= 4.0 for value in spent.values())
    assert all(report.rounds[0]["epsilon"][name] < value for name, value in spent.items())


def test_a_client_spends_no_more_than_its_budget(hosts) -> None:
    pytest.importorskip("opacus")
    host, given = hosts["client-1"], options(epsilon=4.0, delta=1e-3, rounds=1)
    network, _ = build_network(given, TASKS)
    start = {n: t.numpy() for n, t in network.state_dict().items() if "heads" in n}
    request = make_request("train", given, TASKS, round=1, proximal=0.0)
    first = host.answer(request, to_bytes(start))
    # The same question gets the stored answer; another one would need more budget.
    assert host.answer(request, to_bytes(start)) == first
    other, _ = host.answer(request, to_bytes({n: a + 1 for n, a in start.items()}))
    assert "'client-1' has spent its epsilon of 4.0 in 1 rounds" in other["error"]
    strict = replace(host, max_epsilon=1.0)
    assert "its --max-epsilon is 1.0" in strict.answer(request, to_bytes(start))[0]["error"]


def test_clients_with_other_diagnoses_are_mapped(lesions, cache, tmp_path) -> None:
    wide = {"mel": "melanocytic", "nv": "melanocytic"}
    other = small.edited(
        lesions, tmp_path / "b", lambda frame: frame.assign(dx=frame["dx"].replace(wide))
    )
    parts = {"a": lesions, "b": other}
    with pytest.raises(DataError, match=r"share .* images across splits"):
        # The copies are the same photographs, here in other splits.
        moved = small.edited(
            other,
            tmp_path / "c",
            lambda f: f.assign(split=f["split"].replace({"train": "test", "test": "train"})),
        )
        simulate_federated({"a": lesions, "c": moved}, tmp_path / "x", options(), cache=cache)
    given = options(tasks=("diagnosis",), rounds=1)
    report = simulate_federated(parts, tmp_path / "run", given, cache=cache)
    assert report.mapped["a"] == {"mel": "melanocytic", "nv": "melanocytic"}
    assert any("which count twice" in note for note in report.notes)


def test_a_finished_run_is_not_repeated_and_another_is_refused(finished, lesions, cache) -> None:
    out, report = finished
    before = (out / "federated.json").stat().st_mtime_ns
    again = simulate_federated({"all": lesions}, out, options(), partition=PARTITION, cache=cache)
    assert again == report and (out / "federated.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="already holds another run"):
        simulate_federated({"all": lesions}, out, options(rounds=3), partition=PARTITION)


def test_the_command_prints_scores_and_bytes(lesions, cache, tmp_path) -> None:
    words = ["federated", "simulate", "--client", f"all={lesions}", "--partition", 2]
    words += ["--task", "malignancy", "--backbone", small.EXPORTED, "--size", small.SIZE]
    words += ["--rounds", 1, "--cache", cache, "-o", tmp_path / "run"]
    ran = dermedge(*words)
    assert ran.code == 0, ran.err
    assert "sent per client and round" in ran.out and "federated" in ran.out
    assert dermedge(*words, "--json").json()["best_round"] in (0, 1)
    assert dermedge(*words[:4], "-o", tmp_path / "x").code == 2


def test_a_label_skew_changes_the_shares_and_keeps_the_groups(lesions) -> None:
    table = read_table(lesions)
    parts = divide(table, Partition(clients=2, skew=0.3))
    shares = [part.frame["malignant"].mean() for part in parts.values()]
    assert abs(shares[0] - shares[1]) > 0.1
    ids = [set(part.frame["patient_id"]) - {""} for part in parts.values()]
    assert not ids[0] & ids[1]
    assert sum(map(len, parts.values())) == len(table)
    assert isinstance(Client, type)
