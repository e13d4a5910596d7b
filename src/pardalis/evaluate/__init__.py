"""Measuring what a trained model can do, and showing it to a person."""

from pardalis.evaluate.captions import CaptionScores, is_exact, score_captions, token_f1
from pardalis.evaluate.extras import require_packages
from pardalis.evaluate.features import ImageFeatures
from pardalis.evaluate.image_tokenizer import ImageTokenizerScores, evaluate_image_tokenizer
from pardalis.evaluate.images import Images
from pardalis.evaluate.reconstruction import Evaluation, Judges, evaluate_reconstruction
from pardalis.evaluate.reconstruction_page import write_evaluation
from pardalis.evaluate.report import write_report
from pardalis.evaluate.retrieval import Retrieval, nearest, retrieval_top1
from pardalis.evaluate.training_page import write_training_page
from pardalis.evaluate.words import line_reader

__all__ = [
    "CaptionScores",
    "Evaluation",
    "ImageFeatures",
    "ImageTokenizerScores",
    "Images",
    "Judges",
    "Retrieval",
    "evaluate_image_tokenizer",
    "evaluate_reconstruction",
    "is_exact",
    "line_reader",
    "nearest",
    "require_packages",
    "retrieval_top1",
    "score_captions",
    "token_f1",
    "write_evaluation",
    "write_report",
    "write_training_page",
]
