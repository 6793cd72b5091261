"""Whether low or high values of a metric are better, inferred from the words of its name."""

import re
from typing import Literal

from lightning_znorm.errors import ArgumentValueError

Mode = Literal["min", "max"]


def _split(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MIN = _split("""
    loss losses err error errors cost costs penalty regret risk residual deviance distance dissimilarity divergence
    mistakes ce bce xent crossentropy nll nlpd nelbo logloss kl kld jsd mmd emd wasserstein sinkhorn chamfer procrustes
    mse rmse mae mape smape wmape wape mase rmsle msle nrmse nmse rmsse msse rse rrse rae medae mdae mdape medape maape
    owa crps rps pinball l1 l2 ade fde epe aepe mpjpe nme silog absrel sqrel
    wer cer mer ter der eer ser wil eed levenshtein mcd dcf mindcf
    ece mce rmsce brier hamming hinge fallout fpr fnr fdr frr apcer bpcer acer hter
    perplexity ppl pseudoperplexity bpc bpd bpb
    fid mifid kid fvd fad lpips dists niqe brisque piqe ergas rase hausdorff hd95 assd davies
""")
_MAX = _split("""
    acc accuracy accuracies bacc hits hit success reward rewards likelihood loglikelihood loglik elbo similarity
    f1 f2 fbeta fscore fmeasure f1score dice dsc cldice nsd iou miou giou diou ciou fwiou jaccard pq mpq
    precision prec recall sensitivity sens specificity auc auroc aucroc rocauc auprc aupr prauc logauc ap mar
    tpr tnr ppv npv kappa qwk mcc matthews informedness youden csi
    r2 r2score nse kge pearson spearman kendall concordance ccc pcc plcc srcc srocc krcc
    ndcg dcg mrr bleu sacrebleu rouge rougel rougelsum meteor cider spice chrf comet uas las wip
    psnr psnrb ssim msssim vif uqi qnr fidelity snr sisnr sdr sisdr sdri pesq stoi estoi mos dnsmos visqol srmr nisqa
    pck oks nmi ami ari vmeasure homogeneity completeness silhouette dunn calinski fowlkes cramers theils tschuprows
""")
# The direction of these phrases is not that of their words.
_PHRASES: dict[str, Mode] = {
    "negative log likelihood": "min",
    "neg log likelihood": "min",
    "cross entropy": "min",
    "bits per": "min",
    "false positive": "min",
    "false negative": "min",
    "false alarm": "min",
    "false discovery": "min",
    "fall out": "min",
    "miss rate": "min",
    "edit rate": "min",
    "info lost": "min",
    "abs rel": "min",
    "sq rel": "min",
    "path length": "min",
    "angle mapper": "min",
    "distortion index": "min",
    "perceptual image patch similarity": "min",
    "texture similarity": "min",
    "ranked probability score": "min",
    "distance intersection over union": "max",
    "intersection over union": "max",
    "distortion ratio": "max",
    "noise ratio": "max",
    "true positive": "max",
    "true negative": "max",
    "negative predictive value": "max",
    "positive predictive value": "max",
    "explained variance": "max",
    "exact match": "max",
    "info preserved": "max",
    "spatial correlation": "max",
    "contingency coefficient": "max",
    "quality index": "max",
    "quality assessment": "max",
    "quality with no reference": "max",
    "panoptic quality": "max",
    "cumulative gain": "max",
    "win rate": "max",
    "r squared": "max",
}
# These count only without any other word: `top1_err` is an error, `brier_score` a loss.
_WEAK_MAX = frozenset({"top", "score"})
# One of these may reverse the direction: `acc_drop`, `neg_mse`, `loss_std`.
_UNCLEAR = _split("""
    neg negative minus inverse inv inverted complement gap drop decrease reduction improvement increase gain diff
    difference delta change std var variance deviation norm weight ratio count num number time seconds entropy
""")
# Beside any other word, `map` may be a picture: `feature_map`, `heat_map`.
_BESIDE_MAP = _split("""
    val valid validation test eval mean retrieval bbox segm mask small medium large macro micro at k coco
""")


def guess_mode(monitor: str) -> Mode:
    """Infer from the words of a metric's name whether low or high values are better.

    Raises:
        ValueError: If no word is known, or two contradict each other.

    Example::

        >>> guess_mode("val_loss"), guess_mode("val_MAPE"), guess_mode("valid/mAP50"), guess_mode("val/BinaryF1Score")
        ('min', 'min', 'max', 'max')

    """
    votes = _vote(split_words(monitor))
    if len(votes) != 1:
        raise ArgumentValueError(
            f"Argument `mode` is needed: the monitor's name, {monitor!r}, does not show whether low values are better"
            " (`--compare.mode min`) or high ones (`--compare.mode max`)."
        )
    return votes.pop()


def split_words(name: str) -> list[str]:
    """Split the name of a metric into words, unknown ones also where the case changes.

    Example::

        >>> split_words("val/MulticlassF1Score"), split_words("valLoss-top_5"), split_words("val_mIoU")
        (['val', 'multiclass', 'f1', 'score'], ['val', 'loss', 'top', '5'], ['val', 'miou'])

    """
    words = []
    for part in re.findall(r"[A-Za-z0-9]+", name):
        if _find_direction(part.lower()) or part.lower() == "map":
            words.append(part.lower())
        else:
            parts = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+", part.replace("IoU", "Iou"))
            words += [word.lower() for word in parts]
    return words


def _vote(words: list[str]) -> set[Mode]:
    text = f" {' '.join(words)} "
    votes: set[Mode] = set()
    for phrase, mode in _PHRASES.items():
        if f" {phrase} " in text:
            votes.add(mode)
            text = text.replace(f" {phrase} ", " ")
    other_words = text.split()
    if _UNCLEAR.intersection(other_words):
        return set()
    votes.update(filter(None, map(_find_direction, other_words)))
    stems = [_strip_digits(word) for word in other_words]
    if "map" in stems and all(not stem or stem == "map" or stem in _BESIDE_MAP for stem in stems):
        votes.add("max")
    if not votes and _WEAK_MAX.intersection(stems):
        return {"max"}
    return votes


def _find_direction(word: str) -> Mode | None:
    for variant in (word, _strip_digits(word)):
        if variant in _MIN:
            return "min"
        if variant in _MAX:
            return "max"
    return None


def _strip_digits(word: str) -> str:
    return word.rstrip("0123456789")
