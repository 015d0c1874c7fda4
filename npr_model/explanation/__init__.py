"""Why an image got its logit: the NPR map, its spectrum, activation maps and saliency.
Figures for files (heat_maps) and small pictures for web pages (pictures).
"""
