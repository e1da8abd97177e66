"""The cells that papers have published, by name; names are method, space and data set.

A cell lists the operation and the source node of its eight edges, two for each intermediate node.
"""

Cells = tuple[tuple[str, ...], tuple[str, ...]]
"""The edges ``"operation source"`` of a normal and a reduction cell."""

PUBLISHED_CELLS: dict[str, Cells] = {
    # Liu et al. (2019): first and second order; github.com/quark0/darts.
    "DARTS_V1": (
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "skip_connect 0", "sep_conv_3x3 1",
         "skip_connect 0", "sep_conv_3x3 1", "sep_conv_3x3 0", "skip_connect 2"),
        ("max_pool_3x3 0", "max_pool_3x3 1", "skip_connect 2", "max_pool_3x3 0",
         "max_pool_3x3 0", "skip_connect 2", "skip_connect 2", "avg_pool_3x3 0"),
    ),
    "DARTS_V2": (
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 1",
         "sep_conv_3x3 1", "skip_connect 0", "skip_connect 0", "dil_conv_3x3 2"),
        ("max_pool_3x3 0", "max_pool_3x3 1", "skip_connect 2", "max_pool_3x3 1",
         "max_pool_3x3 0", "skip_connect 2", "skip_connect 2", "max_pool_3x3 1"),
    ),
    # Chen et al. (2019), P-DARTS; github.com/chenxin061/pdarts.
    "PDARTS": (
        ("skip_connect 0", "dil_conv_3x3 1", "skip_connect 0", "sep_conv_3x3 1",
         "sep_conv_3x3 1", "sep_conv_3x3 3", "sep_conv_3x3 0", "dil_conv_5x5 4"),
        ("avg_pool_3x3 0", "sep_conv_5x5 1", "sep_conv_3x3 0", "dil_conv_5x5 2",
         "max_pool_3x3 0", "dil_conv_3x3 1", "dil_conv_3x3 1", "dil_conv_5x5 3"),
    ),
    # Xu et al. (2020), PC-DARTS, searched on CIFAR-10 and on ImageNet;
    # github.com/yuhuixu1993/PC-DARTS.
    "PCDARTS": (
        ("sep_conv_3x3 1", "skip_connect 0", "sep_conv_3x3 0", "dil_conv_3x3 1",
         "sep_conv_5x5 0", "sep_conv_3x3 1", "avg_pool_3x3 0", "dil_conv_3x3 1"),
        ("sep_conv_5x5 1", "max_pool_3x3 0", "sep_conv_5x5 1", "sep_conv_5x5 2",
         "sep_conv_3x3 0", "sep_conv_3x3 3", "sep_conv_3x3 1", "sep_conv_3x3 2"),
    ),
    "PCDARTS_IMAGENET": (
        ("skip_connect 1", "sep_conv_3x3 0", "sep_conv_3x3 0", "skip_connect 1",
         "sep_conv_3x3 1", "sep_conv_3x3 3", "sep_conv_3x3 1", "dil_conv_5x5 4"),
        ("sep_conv_3x3 0", "skip_connect 1", "dil_conv_5x5 2", "max_pool_3x3 1",
         "sep_conv_3x3 2", "sep_conv_3x3 1", "sep_conv_5x5 0", "sep_conv_3x3 3"),
    ),
    # Chen and Hsieh (2020), SmoothDARTS, in the DARTS space on CIFAR-10;
    # github.com/xiangning-chen/SmoothDARTS, as all cells below.
    "SDARTS_RS": (
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_5x5 1", "skip_connect 0",
         "sep_conv_3x3 3", "skip_connect 1", "sep_conv_3x3 1", "dil_conv_3x3 2"),
        ("max_pool_3x3 0", "sep_conv_3x3 1", "skip_connect 2", "max_pool_3x3 0",
         "dil_conv_5x5 3", "max_pool_3x3 0", "sep_conv_3x3 2", "sep_conv_5x5 3"),
    ),
    "SDARTS_ADV": (
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 1", "skip_connect 0",
         "sep_conv_5x5 0", "dil_conv_3x3 3", "dil_conv_3x3 4", "skip_connect 0"),
        ("max_pool_3x3 0", "sep_conv_5x5 1", "skip_connect 2", "max_pool_3x3 0",
         "skip_connect 3", "skip_connect 2", "skip_connect 2", "sep_conv_5x5 4"),
    ),
    # SDARTS-RS in S1 to S4.
    "SDARTS_RS_S1_CIFAR10": (
        ("dil_conv_5x5 1", "dil_conv_3x3 0", "sep_conv_3x3 1", "skip_connect 2",
         "dil_conv_3x3 3", "sep_conv_3x3 2", "sep_conv_3x3 0", "dil_conv_3x3 2"),
        ("max_pool_3x3 0", "dil_conv_3x3 1", "dil_conv_5x5 2", "max_pool_3x3 1",
         "dil_conv_5x5 3", "sep_conv_3x3 1", "dil_conv_5x5 2", "dil_conv_5x5 3"),
    ),
    "SDARTS_RS_S2_CIFAR10": (
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 2", "skip_connect 1",
         "sep_conv_3x3 3", "skip_connect 0", "sep_conv_3x3 1", "skip_connect 2"),
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 1", "sep_conv_3x3 0",
         "sep_conv_3x3 2", "sep_conv_3x3 1", "sep_conv_3x3 2", "sep_conv_3x3 3"),
    ),
    "SDARTS_RS_S3_CIFAR10": (
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 0",
         "sep_conv_3x3 1", "sep_conv_3x3 2", "sep_conv_3x3 4", "skip_connect 0"),
        ("skip_connect 0", "sep_conv_3x3 1", "sep_conv_3x3 2", "sep_conv_3x3 0",
         "sep_conv_3x3 2", "sep_conv_3x3 3", "sep_conv_3x3 0", "sep_conv_3x3 4"),
    ),
    "SDARTS_RS_S4_CIFAR10": (
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 2", "sep_conv_3x3 1",
         "sep_conv_3x3 3", "sep_conv_3x3 2", "sep_conv_3x3 4", "sep_conv_3x3 2"),
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 2",
         "sep_conv_3x3 0", "sep_conv_3x3 3", "sep_conv_3x3 0", "sep_conv_3x3 4"),
    ),
    "SDARTS_RS_S1_CIFAR100": (
        ("dil_conv_3x3 0", "skip_connect 1", "dil_conv_3x3 2", "sep_conv_3x3 1",
         "dil_conv_3x3 3", "sep_conv_3x3 2", "skip_connect 0", "dil_conv_3x3 4"),
        ("max_pool_3x3 0", "max_pool_3x3 1", "dil_conv_5x5 2", "max_pool_3x3 1",
         "dil_conv_5x5 3", "dil_conv_3x3 2", "dil_conv_5x5 4", "dil_conv_5x5 3"),
    ),
    "SDARTS_RS_S2_CIFAR100": (
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 2", "sep_conv_3x3 0",
         "sep_conv_3x3 3", "sep_conv_3x3 2", "sep_conv_3x3 4", "sep_conv_3x3 3"),
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 2", "sep_conv_3x3 1",
         "sep_conv_3x3 3", "sep_conv_3x3 1", "sep_conv_3x3 4", "skip_connect 0"),
    ),
    "SDARTS_RS_S3_CIFAR100": (
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 2",
         "sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 4", "sep_conv_3x3 1"),
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 2", "sep_conv_3x3 1",
         "sep_conv_3x3 3", "sep_conv_3x3 2", "sep_conv_3x3 4", "sep_conv_3x3 3"),
    ),
    "SDARTS_RS_S4_CIFAR100": (
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 2", "sep_conv_3x3 0",
         "sep_conv_3x3 2", "sep_conv_3x3 3", "sep_conv_3x3 3", "sep_conv_3x3 2"),
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 2", "sep_conv_3x3 0",
         "sep_conv_3x3 3", "sep_conv_3x3 2", "sep_conv_3x3 4", "sep_conv_3x3 3"),
    ),
    "SDARTS_RS_S1_SVHN": (
        ("skip_connect 0", "dil_conv_5x5 1", "skip_connect 1", "skip_connect 0",
         "skip_connect 2", "skip_connect 0", "skip_connect 1", "skip_connect 2"),
        ("max_pool_3x3 0", "dil_conv_3x3 1", "dil_conv_5x5 2", "max_pool_3x3 0",
         "dil_conv_5x5 3", "dil_conv_3x3 2", "dil_conv_5x5 2", "dil_conv_5x5 3"),
    ),
    "SDARTS_RS_S2_SVHN": (
        ("sep_conv_3x3 1", "skip_connect 0", "sep_conv_3x3 2", "sep_conv_3x3 0",
         "sep_conv_3x3 3", "skip_connect 1", "skip_connect 0", "sep_conv_3x3 4"),
        ("sep_conv_3x3 1", "skip_connect 0", "sep_conv_3x3 2", "sep_conv_3x3 1",
         "sep_conv_3x3 3", "sep_conv_3x3 2", "sep_conv_3x3 3", "sep_conv_3x3 4"),
    ),
    "SDARTS_RS_S3_SVHN": (
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 2", "sep_conv_3x3 1",
         "sep_conv_3x3 1", "sep_conv_3x3 3", "sep_conv_3x3 4", "sep_conv_3x3 2"),
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 2", "skip_connect 0",
         "sep_conv_3x3 3", "sep_conv_3x3 2", "sep_conv_3x3 4", "sep_conv_3x3 3"),
    ),
    "SDARTS_RS_S4_SVHN": (
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 0",
         "sep_conv_3x3 3", "sep_conv_3x3 1", "sep_conv_3x3 4", "sep_conv_3x3 2"),
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 2", "sep_conv_3x3 0",
         "sep_conv_3x3 2", "sep_conv_3x3 3", "sep_conv_3x3 4", "sep_conv_3x3 0"),
    ),
    # SDARTS-ADV in S1 to S4.
    "SDARTS_ADV_S1_CIFAR10": (
        ("dil_conv_5x5 1", "dil_conv_3x3 0", "sep_conv_3x3 1", "skip_connect 2",
         "sep_conv_3x3 2", "dil_conv_3x3 3", "sep_conv_3x3 0", "dil_conv_3x3 2"),
        ("max_pool_3x3 0", "dil_conv_3x3 1", "dil_conv_5x5 2", "max_pool_3x3 0",
         "dil_conv_5x5 3", "dil_conv_3x3 2", "dil_conv_5x5 4", "dil_conv_5x5 2"),
    ),
    "SDARTS_ADV_S2_CIFAR10": (
        ("sep_conv_3x3 1", "skip_connect 0", "sep_conv_3x3 2", "sep_conv_3x3 0",
         "sep_conv_3x3 3", "sep_conv_3x3 2", "sep_conv_3x3 4", "sep_conv_3x3 1"),
        ("skip_connect 0", "skip_connect 1", "sep_conv_3x3 0", "sep_conv_3x3 2",
         "sep_conv_3x3 3", "sep_conv_3x3 0", "sep_conv_3x3 4", "sep_conv_3x3 3"),
    ),
    "SDARTS_ADV_S3_CIFAR10": (
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 0", "sep_conv_3x3 2",
         "sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 1", "skip_connect 0"),
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 2", "sep_conv_3x3 0",
         "sep_conv_3x3 2", "sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 3"),
    ),
    "SDARTS_ADV_S4_CIFAR10": (
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 2", "sep_conv_3x3 1",
         "sep_conv_3x3 3", "sep_conv_3x3 2", "sep_conv_3x3 3", "sep_conv_3x3 4"),
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 2", "sep_conv_3x3 1",
         "sep_conv_3x3 2", "sep_conv_3x3 3", "sep_conv_3x3 3", "sep_conv_3x3 4"),
    ),
    "SDARTS_ADV_S1_CIFAR100": (
        ("dil_conv_5x5 1", "dil_conv_3x3 0", "dil_conv_3x3 2", "sep_conv_3x3 1",
         "dil_conv_3x3 3", "sep_conv_3x3 2", "dil_conv_3x3 2", "sep_conv_3x3 0"),
        ("dil_conv_3x3 1", "max_pool_3x3 0", "dil_conv_5x5 2", "max_pool_3x3 0",
         "dil_conv_5x5 3", "sep_conv_3x3 1", "dil_conv_5x5 3", "dil_conv_5x5 4"),
    ),
    "SDARTS_ADV_S2_CIFAR100": (
        ("skip_connect 0", "sep_conv_3x3 1", "sep_conv_3x3 2", "sep_conv_3x3 1",
         "sep_conv_3x3 3", "sep_conv_3x3 2", "sep_conv_3x3 4", "sep_conv_3x3 3"),
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 2", "sep_conv_3x3 1",
         "sep_conv_3x3 3", "sep_conv_3x3 2", "sep_conv_3x3 3", "sep_conv_3x3 4"),
    ),
    "SDARTS_ADV_S3_CIFAR100": (
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 1",
         "sep_conv_3x3 1", "sep_conv_3x3 2", "sep_conv_3x3 2", "sep_conv_3x3 1"),
        ("skip_connect 1", "sep_conv_3x3 0", "sep_conv_3x3 2", "sep_conv_3x3 0",
         "sep_conv_3x3 3", "sep_conv_3x3 2", "sep_conv_3x3 4", "sep_conv_3x3 3"),
    ),
    "SDARTS_ADV_S4_CIFAR100": (
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 1",
         "sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 0", "sep_conv_3x3 2"),
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 1", "sep_conv_3x3 0",
         "sep_conv_3x3 1", "sep_conv_3x3 3", "sep_conv_3x3 3", "sep_conv_3x3 4"),
    ),
    "SDARTS_ADV_S1_SVHN": (
        ("dil_conv_3x3 0", "dil_conv_5x5 1", "dil_conv_3x3 2", "dil_conv_5x5 0",
         "dil_conv_3x3 3", "sep_conv_3x3 2", "skip_connect 1", "sep_conv_3x3 0"),
        ("max_pool_3x3 0", "dil_conv_3x3 1", "dil_conv_5x5 2", "max_pool_3x3 0",
         "dil_conv_5x5 3", "dil_conv_3x3 2", "dil_conv_5x5 3", "dil_conv_5x5 2"),
    ),
    "SDARTS_ADV_S2_SVHN": (
        ("skip_connect 0", "sep_conv_3x3 1", "sep_conv_3x3 1", "sep_conv_3x3 2",
         "sep_conv_3x3 0", "skip_connect 3", "skip_connect 3", "skip_connect 4"),
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 0",
         "sep_conv_3x3 3", "sep_conv_3x3 0", "skip_connect 3", "sep_conv_3x3 0"),
    ),
    "SDARTS_ADV_S3_SVHN": (
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 0", "skip_connect 2",
         "skip_connect 3", "sep_conv_3x3 1", "skip_connect 2", "sep_conv_3x3 0"),
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 2",
         "sep_conv_3x3 2", "sep_conv_3x3 1", "sep_conv_3x3 1", "sep_conv_3x3 4"),
    ),
    "SDARTS_ADV_S4_SVHN": (
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 0", "sep_conv_3x3 1",
         "sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 1"),
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 2",
         "sep_conv_3x3 2", "sep_conv_3x3 0", "sep_conv_3x3 0", "sep_conv_3x3 1"),
    ),
    # PC-DARTS in S1 to S4, the baseline of Chen and Hsieh (2020).
    "PCDARTS_S1_CIFAR10": (
        ("dil_conv_5x5 1", "dil_conv_3x3 0", "dil_conv_5x5 0", "sep_conv_3x3 1",
         "skip_connect 2", "max_pool_3x3 0", "skip_connect 2", "skip_connect 0"),
        ("max_pool_3x3 0", "max_pool_3x3 1", "max_pool_3x3 1", "max_pool_3x3 0",
         "sep_conv_3x3 1", "max_pool_3x3 0", "dil_conv_5x5 2", "max_pool_3x3 0"),
    ),
    "PCDARTS_S2_CIFAR10": (
        ("skip_connect 1", "sep_conv_3x3 0", "skip_connect 0", "skip_connect 2",
         "skip_connect 3", "sep_conv_3x3 0", "skip_connect 3", "skip_connect 4"),
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 1", "sep_conv_3x3 2",
         "sep_conv_3x3 2", "sep_conv_3x3 3", "sep_conv_3x3 4", "sep_conv_3x3 2"),
    ),
    "PCDARTS_S3_CIFAR10": (
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 2", "sep_conv_3x3 1",
         "sep_conv_3x3 3", "sep_conv_3x3 2", "skip_connect 4", "sep_conv_3x3 2"),
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 2",
         "sep_conv_3x3 0", "sep_conv_3x3 3", "sep_conv_3x3 0", "sep_conv_3x3 4"),
    ),
    "PCDARTS_S4_CIFAR10": (
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 1",
         "sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 0", "noise 3"),
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 1", "sep_conv_3x3 2",
         "sep_conv_3x3 3", "sep_conv_3x3 1", "sep_conv_3x3 2", "sep_conv_3x3 0"),
    ),
    "PCDARTS_S1_CIFAR100": (
        ("dil_conv_3x3 0", "dil_conv_5x5 1", "sep_conv_3x3 1", "dil_conv_3x3 2",
         "dil_conv_3x3 3", "skip_connect 2", "dil_conv_3x3 4", "max_pool_3x3 1"),
        ("max_pool_3x3 0", "dil_conv_3x3 1", "dil_conv_5x5 2", "max_pool_3x3 1",
         "sep_conv_3x3 1", "dil_conv_3x3 2", "dil_conv_5x5 2", "dil_conv_5x5 3"),
    ),
    "PCDARTS_S2_CIFAR100": (
        ("sep_conv_3x3 1", "skip_connect 0", "sep_conv_3x3 1", "skip_connect 2",
         "skip_connect 0", "sep_conv_3x3 1", "sep_conv_3x3 4", "skip_connect 3"),
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 2", "skip_connect 1",
         "sep_conv_3x3 2", "sep_conv_3x3 3", "sep_conv_3x3 1", "sep_conv_3x3 3"),
    ),
    "PCDARTS_S3_CIFAR100": (
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 0", "skip_connect 2",
         "sep_conv_3x3 0", "sep_conv_3x3 3", "sep_conv_3x3 1", "sep_conv_3x3 4"),
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 2",
         "sep_conv_3x3 1", "sep_conv_3x3 3", "sep_conv_3x3 1", "sep_conv_3x3 4"),
    ),
    "PCDARTS_S4_CIFAR100": (
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 0",
         "sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 0", "sep_conv_3x3 1"),
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 2", "sep_conv_3x3 0",
         "sep_conv_3x3 2", "sep_conv_3x3 0", "sep_conv_3x3 4", "sep_conv_3x3 0"),
    ),
    "PCDARTS_S1_SVHN": (
        ("dil_conv_3x3 0", "dil_conv_5x5 1", "skip_connect 1", "skip_connect 2",
         "skip_connect 3", "skip_connect 0", "skip_connect 2", "sep_conv_3x3 0"),
        ("dil_conv_3x3 1", "avg_pool_3x3 0", "dil_conv_5x5 2", "max_pool_3x3 0",
         "dil_conv_5x5 3", "sep_conv_3x3 1", "dil_conv_5x5 4", "dil_conv_5x5 3"),
    ),
    "PCDARTS_S2_SVHN": (
        ("skip_connect 1", "skip_connect 0", "skip_connect 2", "skip_connect 1",
         "skip_connect 2", "skip_connect 1", "skip_connect 2", "skip_connect 1"),
        ("sep_conv_3x3 1", "sep_conv_3x3 0", "skip_connect 0", "sep_conv_3x3 2",
         "skip_connect 2", "sep_conv_3x3 3", "sep_conv_3x3 4", "sep_conv_3x3 3"),
    ),
    "PCDARTS_S3_SVHN": (
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "skip_connect 0", "skip_connect 2",
         "skip_connect 0", "skip_connect 2", "skip_connect 0", "skip_connect 2"),
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 2", "sep_conv_3x3 1",
         "sep_conv_3x3 3", "sep_conv_3x3 1", "sep_conv_3x3 4", "sep_conv_3x3 1"),
    ),
    "PCDARTS_S4_SVHN": (
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 2", "sep_conv_3x3 1",
         "sep_conv_3x3 2", "sep_conv_3x3 3", "sep_conv_3x3 2", "sep_conv_3x3 4"),
        ("sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 2",
         "sep_conv_3x3 0", "sep_conv_3x3 1", "sep_conv_3x3 0", "sep_conv_3x3 1"),
    ),
}  # fmt: skip
