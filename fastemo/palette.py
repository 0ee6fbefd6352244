"""The colours of series, in figures and in annotated videos."""

# Okabe & Ito (2008), "Color Universal Design", for colour-blind readers; darkened for contrast with white.
SERIES = ("#0072b2", "#c05000", "#00805e", "#a04e7c", "#7a6a00", "#4a5ac0", "#8a4b2d", "#4d6068")
