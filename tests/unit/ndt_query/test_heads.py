"""Groups of heads are found where they were planted, said not to be there in noise, and followed over training."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage
from sklearn.metrics import silhouette_score

import ndt_query as nq
from ndt_query.kernels.clusters import aligned, kmeans, overlap
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError

from .attention_cases import noise, patterns


@pytest.fixture(scope="module")
def planted():
    """Two layers of 4 heads; at step 10 the first three look at token 7, the others at themselves."""
    rng = np.random.default_rng(5)
    values = noise(rng, heads=8)
    values[1, :, :3] = 0.4 * values[1, :, :3] + 0.6 * np.eye(9)[7]
    values[1, :, 3:] = 0.4 * values[1, :, 3:] + 0.6 * np.eye(9)
    att = patterns(values)
    return {"a": att.isel(head=slice(0, 4)), "b": att.isel(head=slice(4, 8)).assign_coords(head=range(4))}


@pytest.fixture(scope="module")
def found(planted):
    return nq.cluster_heads(planted, k=2)


def test_clusters__are_the_groups_that_were_planted(found):
    now = found.sel(checkpoint=10)
    assert now["label"].values.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert now["best_k"] == 2
    assert now["best_label"].values.tolist() == now["label"].values.tolist()
    assert now["p_value"].sel(k=2) == pytest.approx(1 / 50)
    assert now["best_p_value"] == pytest.approx(1 / 50)
    assert now["stability"] == 1
    assert now["size"].values.tolist() == [3, 5]
    assert found["layer_of"].values.tolist() == ["a"] * 4 + ["b"] * 4
    assert found["head_of"].values.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_clusters__are_not_there_in_noise(found):
    now = found.sel(checkpoint=0)
    assert now["best_p_value"] > 0.05
    assert (now["p_value"] > 0.05).all()
    assert now["stability"] < 0.5


def test_clusters__say_what_their_heads_do(found, planted):
    whole = np.concatenate([one.values for one in planted.values()], axis=2)[1]
    np.testing.assert_allclose(found["centre"].sel(checkpoint=10, cluster=0), whole[:, :3].mean((0, 1)), rtol=1e-5)
    entropy = np.concatenate([nq.attention_entropy(one)["entropy"].values for one in planted.values()], axis=1)
    np.testing.assert_allclose(found["entropy"], entropy)
    np.testing.assert_allclose(
        found["cluster_entropy"].sel(checkpoint=10), [entropy[1, :3].mean(), entropy[1, 3:].mean()]
    )
    points = whole.mean(0, dtype=np.float64).reshape(8, -1)
    expected = silhouette_score(points, [0, 0, 0, 1, 1, 1, 1, 1])
    assert float(found["silhouette"].sel(checkpoint=10, k=2)) == pytest.approx(expected, rel=1e-4)
    tree = linkage(points, "ward")
    np.testing.assert_allclose(found["linkage"].sel(checkpoint=10)[:, 2], tree[:, 2], rtol=1e-4)


def test_clusters__of_one_layer_or_checkpoint(planted):
    one = nq.cluster_heads(planted["b"].sel(checkpoint=10), k=2, n_null=9)
    assert one["label"].dims == ("checkpoint", "member")
    assert one["checkpoint"].values.tolist() == [10]
    assert set(one["layer_of"].values) == {""}


def test_clusters__need_the_same_checkpoints_and_examples_in_all_layers(rng):
    one = patterns(noise(rng, heads=8))
    for dim, labels in (("checkpoint", [10, 0]), ("example", np.arange(60))):
        with pytest.raises(DimensionError, match=f"Layer 'b' has another {dim}"):
            nq.cluster_heads({"a": one, "b": one.assign_coords({dim: labels})})


def test_clusters__need_no_checkpoint_labels(rng):
    bare = patterns(noise(rng, heads=8)).drop_vars("checkpoint")
    assert nq.cluster_heads(bare, n_null=2)["checkpoint"].values.tolist() == [0, 1]


def test_evolution__counts_what_moves(found):
    labels = np.array([[0, 0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 2, 2, 2, 2], [0] * 8])
    clusters = found[["label"]].isel(checkpoint=[0, 1, 0, 1]).assign_coords(checkpoint=[0, 1, 2, 3])
    clusters["label"] = (("checkpoint", "member"), labels)
    evolved = nq.cluster_evolution(clusters)
    assert evolved["aligned"].values.tolist()[1] == labels[0].tolist()  # the same groups under other names
    assert evolved["rand"].values.tolist()[0] == 1
    assert evolved["moved"].values.tolist() == [0, 2, 4]
    assert evolved["splits"].values.tolist() == [0, 1, 0]
    assert evolved["merges"].values.tolist() == [0, 0, 1]
    assert evolved["p_value"].values[0] < 0.1
    assert (evolved["before"].values.tolist(), evolved["after"].values.tolist()) == ([0, 1, 2], [1, 2, 3])


def test_evolution__in_noise_keeps_no_cluster(rng):
    att = patterns(noise(rng, heads=12, steps=4), steps=(0, 1, 2, 3))
    evolved = nq.cluster_evolution(nq.cluster_heads(att, n_null=1, n_bootstrap=1))
    assert (evolved["rand"] < 0.5).all()


def test_aligned__gives_new_clusters_new_names():
    before, after = np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2])
    assert overlap(before, after).tolist() == [[1, 1, 0], [0, 0, 2]]
    found = aligned(before, after)
    assert found[2:].tolist() == [1, 1]
    assert sorted(found[:2].tolist()) == [0, 2]


def test_kmeans__is_no_worse_than_the_truth(rng):
    points = np.concatenate([rng.normal(m, 0.1, (5, 3)) for m in (0, 3, 6)])
    assert kmeans(points, 3, 0).tolist() == [0] * 5 + [1] * 5 + [2] * 5


def test_clusters__name_what_is_wrong(planted, found, rng):
    with pytest.raises(InvalidInputError, match="There are 4 heads and k=4 clusters"):
        nq.cluster_heads(planted["a"], k=4)
    with pytest.raises(DimensionError, match="patterns of 5 x 5 and 9 x 9"):
        nq.cluster_heads({"a": planted["a"], "b": patterns(noise(rng, tokens=5))})
    values = noise(rng, heads=5)
    values[0, 0, 0, 0, 0] = np.nan
    with pytest.raises(InvalidInputError, match="hold NaN"):
        nq.cluster_heads(patterns(values))
    with pytest.raises(InvalidInputError, match="one checkpoint only"):
        nq.cluster_evolution(found.isel(checkpoint=[0]))
    with pytest.raises(NotFoundError, match="pass that of cluster_heads"):
        nq.cluster_evolution(found[["silhouette"]])
