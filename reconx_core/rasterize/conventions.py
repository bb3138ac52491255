"""Constants of the rendering model, as in gsplat 1.5.3, so that scenes render the same in both rasterisers."""

TILE = 16  # pixels
NEAR = 0.01  # Gaussians closer than this to the camera plane are not drawn
FAR = 1e10
SCREEN_BLUR = 0.3  # pixel^2 added to the diagonal of every projected covariance (eps2d)
MIN_ALPHA = 1 / 255  # contributions with a smaller alpha are skipped
MAX_ALPHA = 0.999  # 0.99 on gsplat's main branch
MIN_TRANSMITTANCE = 1e-4  # a pixel is finished before its transmittance falls to this
VIEW_MARGIN = 0.15  # the projection is linearised no farther outside the image than this share of its size

# Coefficients of the real spherical harmonics, signs as in the INRIA PLY.
SH_0 = 0.28209479177387814  # the constant basis function: colour = 0.5 + SH_0 * coefficient
SH_1 = 0.48860251190292
SH_2 = (1.092548430592079, 0.9461746957575601, 0.3153915652525201, 0.5462742152960395)
SH_3 = (0.5900435899266435, 1.445305721320277, 2.285228997322329, 0.4570457994644658, 1.865881662950577, 1.119528997770346)
