"""The default launcher of sweeps. Hydra takes launchers from `hydra_plugins` alone, a namespace of many packages."""
