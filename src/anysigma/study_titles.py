"""Studies as a reader meets them: a title and a sentence; a study that is not here has its name."""

STUDIES = {
    "fidelity": ("Fidelity", "How far one sampler's images are from real ones, beside what as many real images reach."),
    "table": ("Steps and noise", "One network, every sampler: the distance over the number of steps S and the noise η."),
    "reconstruction": ("Reconstruction", "Held-out images, encoded to x_T by DDIM and decoded again: what is lost."),
    "interpolation": ("Interpolation", "Between two noises on the great circle through them: x_T moves, the image follows."),
    "consistency": ("Consistency", "The same x_T in few steps and in many: what the noise alone decides about an image."),
    "trajectory": ("From noise to image", "One run of the sampler: the state x_t, and the x_0 that the network sees in it."),
    "one_step": ("One step", "From pure noise to x_0 in a single jump: nearly the mean of the data, and why."),
    "likelihood": ("Likelihood", "The variational bound on held-out images in bits a dimension, and where they are spent."),
    "objective": ("One objective for every σ", "J_σ and L_γ on the same draws differ by a constant that no network moves."),
    "schedule": ("Noise schedules", "How much signal is left at every t, and the weights γ_t that follow from it."),
    "memorisation": ("Memorisation", "The nearest training images of generated ones, beside those of held-out images."),
    "speed": ("Speed", "Images a second and seconds an image, against the number of steps S."),
    "plane": ("In the plane", "Points instead of images: the generated beside the data, where every error can be seen."),
}


def titled(name: str) -> tuple[str, str]:
    """Title and sentence of a study; an unknown one has its name."""
    return STUDIES.get(name, (name.replace("_", " ").capitalize(), ""))
