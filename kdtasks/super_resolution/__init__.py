"""Super-resolution: MATLAB's bicubic resizing, PSNR and SSIM as the field measures them."""

from kdtasks.super_resolution.metrics import imresize, psnr_y, ssim_y

__all__ = ["imresize", "psnr_y", "ssim_y"]
