"""Where things lie: grids of voxels, the registration cube, affine maps."""
