"""The preconditioning of Karras et al. (2022), table 1, last column.

D(x) = c_skip x + c_out F(c_in x, c_noise)
"""

import math


def c_skip(sigma, data_std):
    return data_std**2 / (sigma**2 + data_std**2)


def c_out(sigma, data_std):
    return sigma * data_std / math.sqrt(data_std**2 + sigma**2)


def c_in(sigma, data_std):
    return 1 / math.sqrt(sigma**2 + data_std**2)


def c_noise(sigma):
    return math.log(sigma) / 4
