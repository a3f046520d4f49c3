"""The loss of a student: its teacher's soft labels blended with stock label-smoothed cross entropy."""

import functools
import logging
import math
from dataclasses import dataclass, field

import torch
from fairseq import metrics, utils
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
    label_smoothed_nll_loss,
)

from ..errors import UserError
from ..losses.fused import fused_distil
from ..losses.kd import KdLoss, as_logits, same_entries
from ..losses.soft_labels import TopKLogits
from ..losses.word_level import distil
from ..teachers.output_layer import adaptive_lprobs, plain_output_layer
from .kd_loss_by_name import is_own, parse_kd_loss

logger = logging.getLogger(__name__)


@dataclass
class LabelSmoothedKDCrossEntropyCriterionConfig(LabelSmoothedCrossEntropyCriterionConfig):
    kd_temperature: float = field(
        default=1.0,
        metadata={
            "help": "temperature T > 0 that softens teacher and student alike: softmax(logits / T); the loss is scaled "
            "by T^2 so that gradients keep their size. Keep 1 for a teacher trained with label smoothing: higher "
            "temperatures then cost accuracy"
        },
    )
    kd_weight: float = field(
        default=0.9,
        metadata={
            "help": "lambda from 0 to 1: loss = lambda * T^2 * KL(teacher || student) + (1 - lambda) * label-smoothed "
            "loss. Tokens without soft labels get the plain label-smoothed loss, whatever lambda is"
        },
    )
    kd_loss: str = field(
        default="kl",
        metadata={
            "help": "what the student is to match of its teacher, in place of T^2 * KL above: kl, dkd:alpha=1,beta=8, "
            "dist:beta=1,gamma=1, standardized, ttm, or a function package.module:function of your own, "
            "hyper-parameters after a colon (docs/extending.md). All but kl need the logits of the whole batch"
        },
    )


@register_criterion("label_smoothed_kd_cross_entropy", dataclass=LabelSmoothedKDCrossEntropyCriterionConfig)
class LabelSmoothedKDCrossEntropyCriterion(LabelSmoothedCrossEntropyCriterion):
    """Stock `label_smoothed_cross_entropy`, blended with distillation where the task put `soft_labels` in the batch.

    Where the student ends in a plain linear layer, the loss is worked out from the features before it, without the
    logits of the whole batch (`losses.fused`); elsewhere from log-probabilities (`losses.word_level`). Both are the
    same loss, and which one is used is logged once. Another `--kd-loss` than kl (`losses.kd`) takes the second way.

    A batch without `soft_labels` (no teacher, or validation) runs stock fairseq's own code: equal to the last bit.

    Raises:
        UserError: temperature not positive and finite, weight or label smoothing outside 0 to 1, a negative prefix, a
            distillation loss that does not exist.
    """

    def __init__(
        self,
        task,
        sentence_avg,
        label_smoothing,
        ignore_prefix_size=0,
        report_accuracy=False,
        kd_temperature=1.0,
        kd_weight=0.9,
        kd_loss="kl",
    ):
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        if not (0 <= label_smoothing <= 1):
            raise UserError(f"--label-smoothing {label_smoothing}: give a number from 0 to 1, such as 0.1")
        if ignore_prefix_size < 0:
            raise UserError(f"--ignore-prefix-size {ignore_prefix_size}: give 0 or more")
        if not (0 < kd_temperature < math.inf):
            raise UserError(
                f"--kd-temperature {kd_temperature}: give a finite number above 0 (1 leaves the teacher as it is)"
            )
        if not (0 <= kd_weight <= 1):
            raise UserError(f"--kd-weight {kd_weight}: give a number from 0 (labels alone) to 1 (teacher alone)")
        self.kd_temperature = kd_temperature
        self.kd_weight = kd_weight
        self.kd_loss_name = kd_loss
        # a function of the user's own is not imported because a checkpoint names it: see `prepare_to_learn`
        self.kd_loss: KdLoss | None = None if is_own(kd_loss) else parse_kd_loss(kd_loss)
        self._said_how = False

    def prepare_to_learn(self):
        """Called where a training starts that has teachers: imports a `--kd-loss` of the user's own.

        Raises:
            UserError: it cannot be imported, or is no loss.
        """
        self.kd_loss = parse_kd_loss(self.kd_loss_name)

    def forward(self, model, sample, reduce=True):
        """Returns (loss, sample_size, logging output) as the stock criterion does.

        `sample["soft_labels"]`, where present, is a list of `SoftLabels` about the target without its first
        `ignore_prefix_size` columns, empty if no teacher has any for this batch; `sample["untaught"]`, where known, the
        (U,) other tokens of it that are no padding.

        Without `reduce` the loss is (N, 1), one row per target position, as in the stock criterion.
        """
        soft_labels = sample.get("soft_labels")
        if soft_labels is None:
            return super().forward(model, sample, reduce)

        layer, reason = plain_output_layer(model)
        if any(isinstance(labels.logits, TopKLogits) and labels.logits.tail == "bucket" for labels in soft_labels):
            layer, reason = None, "--kd-tail bucket needs the student's probabilities of all entries"
        if self.kd_loss_name != "kl":
            layer, reason = None, f"--kd-loss {self.kd_loss_name} needs them"
        if not self._said_how:
            self._said_how = True
            how = "from decoder features, without the logits of the batch" if layer else f"from logits: {reason}"
            logger.info(f"distillation loss {how}")
        # losses token by token would need their gradients token by token
        if layer is not None and reduce:
            loss, logged = self._loss_from_features(model, layer, sample, soft_labels)
        else:
            loss, logged = self._loss_from_logits(model, sample, soft_labels, reduce)

        nsentences = sample["target"].size(0)
        sample_size = nsentences if self.sentence_avg else sample["ntokens"]
        # these keys come with every training batch of a task that has teachers: workers sum them key by key
        logged = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": nsentences,
            "sample_size": sample_size,
            **logged,
        }
        return loss, sample_size, logged

    def _loss_from_features(self, model, layer, sample, soft_labels):
        features = model(**sample["net_input"], features_only=True)[0][:, self.ignore_prefix_size :]
        target = sample["target"][:, self.ignore_prefix_size :].flatten()
        blended = fused_distil(
            features.flatten(0, 1),
            layer.weight,
            layer.bias,
            target,
            soft_labels,
            sentences=len(features),
            ignore_index=self.padding_idx,
            label_smoothing=self.eps,
            kd_weight=self.kd_weight,
            temperature=self.kd_temperature,
            untaught=sample.get("untaught"),
        )
        logged = _logged(blended.nll_loss, blended)
        if self.report_accuracy:
            logged.update(n_correct=blended.n_correct, total=target.ne(self.padding_idx).sum())
        return blended.loss, logged

    def _loss_from_logits(self, model, sample, soft_labels, reduce):
        net_output = model(**sample["net_input"])
        lprobs, target = self._lprobs_and_target(model, net_output, sample)
        label_loss, nll_loss = label_smoothed_nll_loss(lprobs, target, self.eps, self.padding_idx, reduce=False)
        kd_loss_of = None
        if self.kd_loss_name != "kl":
            is_plain = plain_output_layer(model)[0] is not None
            logits = net_output[0][:, self.ignore_prefix_size :].flatten(0, 1) if is_plain else lprobs
            kd_loss_of = functools.partial(self._kd_loss_of, logits, target)
        blended = distil(
            lprobs,
            label_loss.squeeze(1),
            soft_labels,
            sentences=len(sample["target"]),
            kd_weight=self.kd_weight,
            temperature=self.kd_temperature,
            kd_loss_of=kd_loss_of,
        )
        loss = blended.loss.sum() if reduce else blended.loss.unsqueeze(1)
        logged = _logged(nll_loss.detach().sum() if reduce else nll_loss.detach(), blended)
        if self.report_accuracy:
            with torch.no_grad():
                n_correct, total = self.compute_accuracy(model, net_output, sample)
            logged.update(n_correct=utils.item(n_correct), total=utils.item(total))
        return loss, logged

    def _kd_loss_of(self, student_logits, target, rows, teacher):
        """The mean loss of some of the (N, V) student's tokens, which a teacher teaches."""
        dense = as_logits(teacher, self.kd_temperature)
        pair = same_entries(student_logits.index_select(0, rows), dense, getattr(self.kd_loss, "takes_top_k", False))
        loss = self.kd_loss(*pair, target.index_select(0, rows), self.kd_temperature)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise UserError(
                f"--kd-loss {self.kd_loss_name} returned {found}: a loss returns one number, the mean over the words"
            )
        return loss.reshape(())

    def _lprobs_and_target(self, model, net_output, sample):
        """As `get_lprobs_and_target`, but with gradients also where the student ends in an adaptive softmax."""
        softmax = getattr(getattr(model, "decoder", None), "adaptive_softmax", None)
        if softmax is None:
            return self.get_lprobs_and_target(model, net_output, sample)
        features = net_output[0][:, self.ignore_prefix_size :]
        target = sample["target"][:, self.ignore_prefix_size :]
        return adaptive_lprobs(softmax, features.flatten(0, 1)), target.flatten()

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        """Logs the stock metrics; where tokens were taught, also their mean T^2 KL (or other distillation loss; divided
        by ln 2, as fairseq's losses are) and top-1 agreement (%)."""
        super().reduce_metrics(logging_outputs)
        taught = utils.item(sum(log.get("kd_ntokens", 0) for log in logging_outputs))
        if taught > 0:
            kd_loss = utils.item(sum(log.get("kd_loss", 0) for log in logging_outputs))
            agreed = utils.item(sum(log.get("kd_agreed", 0) for log in logging_outputs))
            metrics.log_scalar("kd_loss", kd_loss / taught / math.log(2), taught, round=3)
            metrics.log_scalar("kd_agreement", 100 * agreed / taught, taught, round=2)


def _logged(nll_loss, blended):
    """What both ways to the loss log beside it."""
    return {
        "nll_loss": nll_loss,
        "kd_loss": blended.kd_loss,
        "kd_ntokens": blended.taught,
        "kd_agreed": blended.agreed,
    }
