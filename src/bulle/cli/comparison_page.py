"""placeholder"""
from bulle.model.comparison import Comparison
def page_of(found: Comparison) -> str:
    """x"""
    return ""
