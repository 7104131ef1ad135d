"""Pictures of data, samples, scores and training, as PNG or GIF bytes.

Every function takes NumPy arrays or tensors and draws on its own matplotlib figure, without pyplot or global state.
The files have a subject each: ``images``, ``curves``, ``plane`` (points, densities and fields in the plane),
``values`` (series and tables), ``restored`` and ``moving``. They share the look (``style``), the checks of what they
draw (``inputs``) and the layout of images on a page (``sheet``).

A wrong shape raises ``ShapeError`` and a value that cannot be drawn ``ArgumentError``; both name the argument.
"""

from scoresde.app.plots.curves import histograms as histograms
from scoresde.app.plots.curves import loss_curve as loss_curve
from scoresde.app.plots.curves import sde_curves as sde_curves
from scoresde.app.plots.images import columns_of_images as columns_of_images
from scoresde.app.plots.images import image_grid as image_grid
from scoresde.app.plots.images import rows_of_images as rows_of_images
from scoresde.app.plots.images import side_by_side as side_by_side
from scoresde.app.plots.images import strip as strip
from scoresde.app.plots.moving import gif as gif
from scoresde.app.plots.moving import moving_images as moving_images
from scoresde.app.plots.moving import moving_points as moving_points
from scoresde.app.plots.plane import density_image as density_image
from scoresde.app.plots.plane import scatter_pair as scatter_pair
from scoresde.app.plots.plane import score_field as score_field
from scoresde.app.plots.restored import restored_curves as restored_curves
from scoresde.app.plots.restored import restored_points as restored_points
from scoresde.app.plots.style import STYLE as STYLE
from scoresde.app.plots.values import features as features
from scoresde.app.plots.values import series as series
