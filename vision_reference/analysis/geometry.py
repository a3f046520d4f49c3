"""Where classes lie in feature space: projections for pictures, distances between classes, the diffusion index.

Arrays in, arrays out, float64 inside. Features are the input of a network's last linear layer, one row an image.
"""

from dataclasses import dataclass

import numpy as np

from vision_reference.errors import UserError

RESAMPLES = 9999


def plane(weight: np.ndarray, bias: np.ndarray | None, classes: list[int]) -> np.ndarray:
    """Orthonormal basis of the space that the chosen classes' rows of the last layer span.

    Chandrasegaran et al. 2022, figures 1, A.1 and A.2; after Mueller et al. 2019. The bias appended to a row is that
    row's own.

    Args:
        weight: (K, h) of the last linear layer.
        bias: (K,), or None for a layer without one.
        classes: c class numbers.

    Returns:
        (h + 1, c), columns orthonormal.

    Raises:
        UserError: the rows are linearly dependent, so that they span no such space.
    """
    rows = np.asarray(weight, dtype=np.float64)[classes]
    own_bias = np.zeros(len(classes)) if bias is None else np.asarray(bias, dtype=np.float64)[classes]
    basis, triangle = np.linalg.qr(np.column_stack([rows, own_bias]).T)
    diagonal = np.abs(np.diag(triangle))
    if not diagonal.min() > 1e-10 * max(diagonal.max(), 1e-300):
        raise UserError("the last layer's weights of the chosen classes are linearly dependent; choose other classes")
    return basis


def project(features: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """(N, h) features with a constant 1 appended, in the (h + 1, c) ``basis`` of ``plane``: (N, c)."""
    features = np.asarray(features, dtype=np.float64)
    return features @ basis[:-1] + basis[-1]


@dataclass(frozen=True)
class Pca:
    """Principal components of a point cloud, kept so that other points can be shown in the same picture.

    Attributes:
        mean: (c,) of the points it was fitted on.
        axes: (c, 2), orthonormal columns, the direction of the largest variance first.
    """

    mean: np.ndarray
    axes: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(N, c) points to (N, 2) coordinates."""
        return (points - self.mean) @ self.axes


def fit_pca(points: np.ndarray, centroids: np.ndarray) -> Pca:
    """Two principal components of points and centroids together.

    A component's sign is free; here the last centroid lies on the right and the first one not below the second, so
    that pictures of several networks can be laid side by side.

    Args:
        points: (N, c), c at least 2.
        centroids: (at least 2, c).

    Raises:
        UserError: all points are the same, so that there is nothing to show.
    """
    cloud = np.concatenate([points, centroids])
    mean = cloud.mean(axis=0)
    _, sizes, directions = np.linalg.svd(cloud - mean, full_matrices=False)
    if not sizes[0] > 1e-9 * max(np.abs(cloud).max(), 1e-300) * len(cloud) ** 0.5:
        raise UserError("the features of all images are the same: this network tells nothing apart")
    axes = directions[:2].T
    seen = (centroids - mean) @ axes
    signs = np.where([seen[-1, 0] < 0, seen[0, 1] < seen[1, 1]], -1.0, 1.0)
    return Pca(mean, axes * signs)


def class_means(features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """(classes, h) mean feature of each class from features (N, h) and class numbers (N,).

    Raises:
        UserError: a class has no image.
    """
    counts = np.bincount(labels, minlength=classes)
    if empty := np.flatnonzero(counts == 0).tolist():
        raise UserError(f"no image of class number {empty[0]}: class means need at least one image of every class")
    sums = np.zeros((classes, features.shape[1]))
    np.add.at(sums, labels, np.asarray(features, dtype=np.float64))
    return sums / counts[:, None]


def mean_probabilities(logits: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """(classes, K): the mean probability, at T = 1, that each class's images are given for class k.

    Args:
        logits: (N, K).
        labels: (N,) class numbers below ``classes``.

    Raises:
        UserError: a class has no image.
    """
    shifted = np.asarray(logits, dtype=np.float64)
    exponentials = np.exp(shifted - shifted.max(axis=1, keepdims=True))
    return class_means(exponentials / exponentials.sum(axis=1, keepdims=True), labels, classes)


def relative_distances(means: np.ndarray) -> np.ndarray:
    """``d(c, k) = ||mu_c - mu_k|| / mean over j != c of ||mu_c - mu_j||``: (K, K) from class means (K, h).

    Free of the features' scale; each row's mean over the other classes is 1.

    Raises:
        UserError: fewer than 3 classes, or class means that do not differ.
    """
    means = np.asarray(means, dtype=np.float64)
    if len(means) < 3:
        raise UserError(f"distances between classes are compared with one another: {len(means)} classes are too few")
    if not np.isfinite(means).all():
        raise UserError("features are not finite; the network's weights are damaged")
    distances = np.linalg.norm(means[:, None] - means[None], axis=2)
    average = distances.sum(axis=1) / (len(means) - 1)
    if not average.min() > 1e-9 * max(np.abs(means).max(), 1e-300):
        raise UserError("the mean features of all classes are the same: this network tells nothing apart")
    return distances / average[:, None]


def neighbour_count(classes: int) -> int:
    """How many classes count as similar: min(5, (classes - 1) // 2), so that they are not among the dissimilar too."""
    return min(5, (classes - 1) // 2)


def most_and_least_similar(probabilities: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """For every class the ``count`` others that its images are taken for most, and least: two (K, count) of numbers.

    Args:
        probabilities: (K, K), row c the mean probabilities of class c's images (``mean_probabilities``).
        count: at least 1 and at most (K - 1) // 2.
    """
    probabilities = np.array(probabilities, dtype=np.float64)
    np.fill_diagonal(probabilities, -np.inf)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :-1]  # a class itself comes last
    return order[:, :count], order[:, ::-1][:, :count]


def drift(reference: np.ndarray, other: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """eta of each class: by how many percent it is nearer to the classes ``towards`` than it was in ``reference``.

    ``eta(c) = 100 * mean over k of (d_reference(c, k) - d_other(c, k)) / mean over k of d_reference(c, k)``, k in
    ``towards[c]``; d as in ``relative_distances``. With the most similar classes and T = 1 as the reference this is the
    diffusion index of raising T; above 0: diffusion.

    Args:
        reference, other: class means (K, h) and (K, h'), of the same classes in the same order.
        towards: (K, n) class numbers.

    Returns:
        (K,) percent.
    """
    if len(reference) != len(other):
        raise UserError(f"one network has {len(reference)} classes, the other {len(other)}; compare networks of equals")
    rows = np.arange(len(reference))[:, None]
    before = relative_distances(reference)[rows, towards].mean(axis=1)
    after = relative_distances(other)[rows, towards].mean(axis=1)
    if not before.min() > 0:
        raise UserError(f"class number {int(before.argmin())} coincides with its similar classes in the reference")
    return 100 * (before - after) / before


def bootstrap_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values`` (n,), resampled 9,999 times from a fixed seed.

    The two ends are equal where there is one value or all are the same.
    """
    from scipy.stats import bootstrap  # takes a second to import

    values = np.asarray(values, dtype=np.float64)
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        random_state=0,
    ).confidence_interval
    return float(found.low), float(found.high)


@dataclass(frozen=True)
class Spread:
    """How a network's features lie: ``within`` and ``between`` in the features' own unit, ``ratio`` without one.

    Attributes:
        within: root mean square distance of an image's feature from its class's mean.
        between: root mean square distance of a class's mean from the mean of all class means.
        ratio: within / between; small: tight classes far apart.
        per_class: (K,) root mean square distance within each class, divided by ``between``.
    """

    within: float
    between: float
    ratio: float
    per_class: np.ndarray


def spread(features: np.ndarray, labels: np.ndarray, classes: int) -> Spread:
    """Tightness and separation of classes; every class counts the same however many images it has.

    Args:
        features: (N, h).
        labels: (N,) class numbers below ``classes``.

    Raises:
        UserError: a class without images, fewer than 2 classes, or class means that do not differ.
    """
    means = class_means(features, labels, classes)
    if not np.isfinite(means).all():
        raise UserError("features are not finite; the network's weights are damaged")
    squares = ((np.asarray(features, dtype=np.float64) - means[labels]) ** 2).sum(axis=1)
    variances = np.bincount(labels, weights=squares, minlength=classes) / np.bincount(labels, minlength=classes)
    between = float(np.sqrt(((means - means.mean(axis=0)) ** 2).sum(axis=1).mean()))
    if not between > 1e-9 * max(float(np.abs(means).max()), 1e-300):
        raise UserError("the mean features of all classes are the same: this network tells nothing apart")
    within = float(np.sqrt(variances.mean()))
    return Spread(within, between, within / between, np.sqrt(variances) / between)
