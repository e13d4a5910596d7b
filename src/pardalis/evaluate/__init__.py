"""Metrics of trained models, and pages that show them."""

from pardalis.evaluate.captions import CaptionScores, is_exact, score_captions, token_f1
from pardalis.evaluate.extras import require_packages
from pardalis.evaluate.features import ImageFeatures
from pardalis.evaluate.image_tokenizer import ImageTokenizerScores, evaluate_image_tokenizer
from pardalis.evaluate.images import ImageSet
from pardalis.evaluate.ocr import load_ocr
from pardalis.evaluate.reconstruction import Evaluation, MetricNets, evaluate_reconstruction
from pardalis.evaluate.reconstruction_page import write_evaluation
from pardalis.evaluate.report import write_report
from pardalis.evaluate.retrieval import Retrieval, nearest, retrieval_top1
from pardalis.evaluate.tasks import compare_results, evaluate_tasks
from pardalis.evaluate.training_page import write_training_page
