"""Projections and distances against closed forms, scikit-learn, and hand-made features whose eta is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from vision_reference.analysis import geometry
from vision_reference.errors import UserError


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


@given(seed=st.integers(0, 2**31), width=st.sampled_from([3, 8, 512]))
@settings(max_examples=20, deadline=None)
def test_the_plane_is_the_row_space_of_the_classes_own_weights_and_biases(seed, width):
    weight, bias, classes = random(seed, 12, width), random(seed + 1, 12), [7, 2, 9]
    basis = geometry.plane(weight, bias, classes)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-12)
    rows = np.column_stack([weight[classes], bias[classes]])
    # A projector onto the row space leaves exactly the rows as they are; by pseudo-inverse, without QR.
    np.testing.assert_allclose(basis @ basis.T, np.linalg.pinv(rows) @ rows, atol=1e-9)
    # Logits of the three classes survive the projection: the plane holds all that the layer sees of them.
    features = random(seed + 2, 5, width)
    logits = features @ weight[classes].T + bias[classes]
    np.testing.assert_allclose(geometry.project(features, basis) @ (basis.T @ rows.T), logits, atol=1e-8)


def test_a_layer_without_bias_and_dependent_weights():
    weight = random(3, 4, 6)
    basis = geometry.plane(weight, None, [0, 1, 2])
    np.testing.assert_allclose(basis[-1], 0, atol=1e-12)
    weight[2] = 2 * weight[0]
    with pytest.raises(UserError, match="linearly dependent"):
        geometry.plane(weight, None, [0, 1, 2])


def test_components_equal_scikit_learns_and_are_reused_for_other_points():
    points, centroids, others = random(5, 40, 3) * [3, 1, 0.2], random(6, 3, 3), random(7, 9, 3)
    pca = geometry.fit_pca(points, centroids)
    theirs = PCA(2).fit(np.concatenate([points, centroids]))
    for cloud in (points, centroids, others):
        np.testing.assert_allclose(np.abs(pca(cloud)), np.abs(theirs.transform(cloud)), atol=1e-10)
    seen = pca(centroids)
    assert seen[-1, 0] >= 0
    assert seen[0, 1] >= seen[1, 1]


def test_points_that_are_all_the_same_cannot_be_shown():
    with pytest.raises(UserError, match="the same"):
        geometry.fit_pca(np.full((9, 3), 4.2), np.full((3, 3), 4.2))


def test_class_means_and_probabilities_of_a_hand_worked_case():
    features = np.array([[0.0, 2.0], [2.0, 4.0], [10.0, 10.0]])
    np.testing.assert_array_equal(geometry.class_means(features, np.array([1, 1, 0]), 2), [[10, 10], [1, 3]])
    with pytest.raises(UserError, match="class number 2"):
        geometry.class_means(features, np.array([1, 1, 0]), 3)
    logits = np.log([[1.0, 3.0], [3.0, 1.0], [1.0, 1.0]]) + 700  # large logits do not overflow
    expected = [[0.5, 0.5], [(1 / 4 + 3 / 4) / 2, (3 / 4 + 1 / 4) / 2]]
    np.testing.assert_allclose(geometry.mean_probabilities(logits, np.array([1, 1, 0]), 2), expected)


def test_relative_distances_are_free_of_scale_and_place_and_average_to_one():
    means = random(8, 6, 5)
    d = geometry.relative_distances(means)
    for c in range(6):
        others = [j for j in range(6) if j != c]
        lengths = [np.sqrt(((means[c] - means[j]) ** 2).sum()) for j in others]
        np.testing.assert_allclose(d[c, others], np.array(lengths) / np.mean(lengths))
    np.testing.assert_allclose(geometry.relative_distances(17 * means + 3), d, atol=1e-12)


@pytest.mark.parametrize("means", [np.ones((4, 3)), np.zeros((4, 3))])
def test_constant_features_are_refused_not_divided_by(means):
    with pytest.raises(UserError, match="the same"):
        geometry.relative_distances(means)
    with pytest.raises(UserError, match="the same"):
        geometry.spread(means, np.arange(4), 4)


def test_too_few_classes_and_broken_features_are_refused():
    with pytest.raises(UserError, match="2 classes are too few"):
        geometry.relative_distances(np.eye(2))
    with pytest.raises(UserError, match="not finite"):
        geometry.relative_distances(np.full((3, 2), np.nan))


def test_similar_classes_follow_the_probabilities_and_do_not_overlap_with_the_control():
    probabilities = np.array([[0.9, 0.06, 0.03, 0.01, 0.0], *np.full((4, 5), 0.2)])
    similar, control = geometry.most_and_least_similar(probabilities, 2)
    assert similar[0].tolist() == [1, 2]
    assert control[0].tolist() == [4, 3]
    for classes in range(3, 30):
        count = geometry.neighbour_count(classes)
        assert 1 <= count <= 5
        similar, control = geometry.most_and_least_similar(random(classes, classes, classes) ** 2, count)
        for c in range(classes):
            assert not {c} & {*similar[c], *control[c]}
            assert not {*similar[c]} & {*control[c]}


def test_eta_of_classes_moved_by_a_known_amount():
    # On a line: 0 at the origin, its look-alike at 4, others at 6 and 10. Mean distance of class 0: 20 / 3.
    before = np.array([[0.0], [4.0], [6.0], [10.0]])
    # The look-alike moved to 2: mean distance 18 / 3. d(0, 1) falls from 4 / (20 / 3) = 0.6 to 2 / 6 = 1 / 3.
    after = np.array([[0.0], [2.0], [6.0], [10.0]])
    towards = np.array([[1], [0], [1], [2]])
    eta = geometry.drift(before, after, towards)
    assert eta[0] == pytest.approx(100 * (0.6 - 1 / 3) / 0.6)
    # Class 1: distances 4, 2, 6 (mean 4) become 2, 4, 8 (mean 14 / 3); towards 0: 1 becomes 3 / 7.
    assert eta[1] == pytest.approx(100 * (1 - 3 / 7))
    # Class 3: distances 10, 6, 4 (mean 20 / 3) become 10, 8, 4 (mean 22 / 3); towards 2: 0.6 becomes 6 / 11.
    assert eta[3] == pytest.approx(100 * (0.6 - 6 / 11) / 0.6)
    np.testing.assert_allclose(geometry.drift(before, before * 5 + 1, towards), 0, atol=1e-9)


def test_eta_averages_distances_before_it_divides():
    before, after = random(9, 7, 4), random(10, 7, 4)
    towards = np.array([[(c + 1) % 7, (c + 3) % 7] for c in range(7)])

    def d(means, c, k):
        lengths = [np.linalg.norm(means[c] - means[j]) for j in range(7) if j != c]
        return np.linalg.norm(means[c] - means[k]) / np.mean(lengths)

    for c, eta in enumerate(geometry.drift(before, after, towards)):
        changes = [d(before, c, k) - d(after, c, k) for k in towards[c]]
        assert eta == pytest.approx(100 * np.mean(changes) / np.mean([d(before, c, k) for k in towards[c]]))


def test_the_bootstrap_interval_is_close_to_the_normal_one_and_narrow_for_equals():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = geometry.bootstrap_interval(values)
    error = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - error, abs=0.03)
    assert high == pytest.approx(values.mean() + error, abs=0.03)
    assert geometry.bootstrap_interval(values) == (low, high)
    assert geometry.bootstrap_interval(np.full(5, 1.5)) == (1.5, 1.5)
    assert geometry.bootstrap_interval(np.array([2.0])) == (2.0, 2.0)


def test_spread_of_a_hand_worked_case_and_of_gaussians():
    # Two classes around (-3, 0) and (3, 0), each point 1 away; the unequal numbers of images change nothing.
    features = np.array([[-3, 1], [-3, -1], [2, 0], [4, 0], [3, 1], [3, -1]], dtype=float)
    found = geometry.spread(features, np.array([0, 0, 1, 1, 1, 1]), 2)
    assert (found.within, found.between, found.ratio) == pytest.approx((1, 3, 1 / 3))
    np.testing.assert_allclose(found.per_class, 1 / 3)
    means = 10 * random(11, 5, 8)
    labels = np.repeat(np.arange(5), 2000)
    found = geometry.spread(means[labels] + 0.5 * random(12, 10000, 8), labels, 5)
    assert found.within == pytest.approx(0.5 * np.sqrt(8), rel=0.02)
