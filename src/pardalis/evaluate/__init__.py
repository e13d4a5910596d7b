"""Measuring what a trained model can do, and showing it to a person."""

from pardalis.evaluate.captions import CaptionScores, is_exact, score_captions, token_f1
from pardalis.evaluate.extras import require_packages
from pardalis.evaluate.features import PictureFeatures
from pardalis.evaluate.image_tokenizer import ImageTokenizerScores, evaluate_image_tokenizer
from pardalis.evaluate.report import write_report
from pardalis.evaluate.retrieval import Retrieval, nearest, retrieval_top1

__all__ = [
    "CaptionScores",
    "ImageTokenizerScores",
    "PictureFeatures",
    "Retrieval",
    "evaluate_image_tokenizer",
    "is_exact",
    "nearest",
    "require_packages",
    "retrieval_top1",
    "score_captions",
    "token_f1",
    "write_report",
]
