"""Studies: several training runs and a page that compares them."""

from pardalis.studies.comparison import compare_image_tokenizers
from pardalis.studies.stability import study_stability
