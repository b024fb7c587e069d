"""The public names of questions about the data: `audit`, `learning_curve` and `suggest`, and their results."""

from inat_ft_insights.api import AuditResult, LearningCurveResult, SuggestResult, audit, learning_curve, suggest

__all__ = ["AuditResult", "LearningCurveResult", "SuggestResult", "audit", "learning_curve", "suggest"]
