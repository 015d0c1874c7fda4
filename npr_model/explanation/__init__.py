"""Why an image got its logit: NPR map, spectrum, class activation map and saliency.
heat_maps.py draws figures for files, pictures.py small pictures for web pages; explain_files.py explains files.
"""
