"""Studies: what compares several training runs, or the answers of models by people."""

from pardalis.studies.comparison import compare_image_tokenizers
from pardalis.studies.stability import study_stability
