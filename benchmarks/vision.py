"""Models of timm and torchvision with random weights, as small as the libraries allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxmerge.sources.factory import first_parameter

CLASSES = 10
BATCH = 4


@dataclass(frozen=True)
class Model:
    """A model by its library's name, the options that make it small, and the side of its square images."""

    library: str
    name: str
    side: int = 64
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        return self.name if self.library == "timm" else f"{self.library}:{self.name}"


def models() -> list[Model]:
    """All that are examined: torchvision's first."""
    return [*_TORCHVISION, *_TIMM]


def build(which: Model, seed: int) -> tuple[nn.Module, Mapping[str, Any]]:
    """A random model in eval mode, as if it had been trained: no scale is 1, no bias 0, statistics are of a batch."""
    torch.manual_seed(seed)
    model = _made(which)
    for parameter in model.parameters():
        spread = 0.1 if parameter.ndim < 2 else (len(parameter) / max(parameter.numel(), 1)) ** 0.5
        parameter.data += torch.randn_like(parameter) * spread
    images = torch.randn(BATCH, *_shape(which))
    _settle(model, images)
    return model.eval(), {first_parameter(model): images}


def _made(which: Model) -> nn.Module:
    options = dict(which.options)
    keep = options.pop("keep", None)
    if which.library == "timm":
        import timm

        made: nn.Module = timm.create_model(which.name, num_classes=CLASSES, **options)
        if keep is not None:
            made.blocks = made.blocks[:keep]  # a depth that the library does not let be chosen
    else:
        from torchvision.models import get_model

        made = get_model(which.name, weights=None, num_classes=CLASSES, **options)
    return made


def _shape(which: Model) -> tuple[int, ...]:
    places = (16,) * ("video" in which.name or which.name in _VIDEO)
    return (3, *places, which.side, which.side)


def _settle(model: nn.Module, images: Tensor) -> None:
    """Running statistics of one batch: those of a new model are zeros and ones."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _torchvision(name: str, side: int = 64, **options: Any) -> Model:
    return Model("torchvision", name, side, tuple(options.items()))


def _timm(name: str, side: int = 64, **options: Any) -> Model:
    return Model("timm", name, side, tuple(options.items()))


_VIDEO = ("r3d_18", "s3d")

_D, _W, _H = (1, 1, 2, 1), (16, 32, 48, 64), (1, 2, 3, 4)
_SMALL: dict[str, Any] = {"depths": _D, "embed_dim": 16, "num_heads": (1, 2, 4, 8)}
_VIT: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3}

_TORCHVISION = [
    _torchvision("resnet18"),
    _torchvision("mobilenet_v2"),
    _torchvision("mobilenet_v3_small"),
    _torchvision("efficientnet_b0"),
    _torchvision("vit_b_16", image_size=64),
    _torchvision("swin_t"),
    _torchvision("swin_v2_t"),
    _torchvision("shufflenet_v2_x0_5"),
    _torchvision("mnasnet0_5"),
    _torchvision("squeezenet1_1"),
    _torchvision("regnet_y_400mf"),
    _torchvision("resnext50_32x4d"),
    _torchvision("densenet121", bn_size=2),
    _torchvision("convnext_tiny"),
    _torchvision("googlenet", init_weights=True),
    _torchvision("lraspp_mobilenet_v3_large", weights_backbone=None),
    _torchvision("maxvit_t", 224),
    _torchvision("fcn_resnet50", weights_backbone=None),
    _torchvision("deeplabv3_resnet50", weights_backbone=None),
    _torchvision("efficientnet_v2_s"),
    _torchvision("alexnet"),
    _torchvision("wide_resnet50_2"),
    _torchvision("vgg11_bn"),
    _torchvision("inception_v3", 299, init_weights=True),
    _torchvision("r3d_18"),
    _torchvision("s3d", 224),
]

_TIMM = [
    _timm("vit_tiny_patch16_224", img_size=64, **_VIT),
    _timm("vit_small_patch14_reg4_dinov2", 56, img_size=56, **_VIT),
    _timm("vit_so400m_patch14_siglip_224", 56, img_size=56, **_VIT),
    _timm("vit_so150m2_patch16_reg1_gap_256", img_size=64, **_VIT),
    _timm("vit_tiny_patch16_dinov3_qkvb", img_size=64, **_VIT),
    _timm("vit_relpos_small_patch16_224", img_size=64, **_VIT),
    _timm("vit_pe_core_tiny_patch16_384", img_size=64, **_VIT),
    _timm("eva02_tiny_patch14_224", 56, img_size=56, **_VIT),
    _timm("deit3_small_patch16_224", img_size=64, **_VIT),
    _timm("deit_tiny_distilled_patch16_224", img_size=64, **_VIT),
    _timm("beit_base_patch16_224", img_size=64, **_VIT),
    _timm("aimv2_large_patch14_224", 56, img_size=56, **_VIT),
    _timm("naflexvit_base_patch16_gap", **_VIT),
    _timm("samvit_base_patch16_224", img_size=64, **_VIT, global_attn_indexes=(1,)),
    _timm("cait_xxs24_224", img_size=64, **_VIT),
    _timm("xcit_nano_12_p16_224", **_VIT),
    _timm("coat_lite_tiny", img_size=64, serial_depths=(1, 1, 1, 1)),
    _timm("coat_tiny", img_size=64, serial_depths=(1, 1, 1, 1), parallel_depth=1),
    _timm("convit_tiny", img_size=64, depth=3, local_up_to_layer=2, embed_dim=12),
    _timm("crossvit_tiny_240", 240, depth=((1, 2, 0),)),
    _timm("levit_128s", 224, embed_dim=(32, 48, 64), num_heads=(2, 3, 4), depth=(1, 1, 1)),
    _timm("mobilevit_xxs"),
    _timm("mobilevitv2_050"),
    _timm("efficientformer_l1", 224, depths=_D, embed_dims=_W),
    _timm("efficientformerv2_s0", 224, depths=_D, embed_dims=_W),
    _timm("efficientvit_b0"),
    _timm("efficientvit_m0", 224),
    _timm("edgenext_xx_small", depths=_D, dims=(16, 32, 48, 64)),
    _timm("fastvit_t8", layers=(1, 1, 1, 1), embed_dims=(48, 48, 96, 96)),
    _timm("fastvit_sa12", layers=(1, 1, 1, 1)),
    _timm("ghostnet_050"),
    _timm("ghostnetv2_100"),
    _timm("hrnet_w18_small"),
    _timm("inception_next_atto", depths=_D),
    _timm("test_coatnet", img_size=64),
    _timm("test_maxvit", img_size=64),
    _timm("maxxvit_rmlp_nano_rw_256", img_size=64),
    _timm("mixer_s32_224", img_size=64, keep=2),
    _timm("gmlp_ti16_224", img_size=64, keep=2),
    _timm("resmlp_12_224", img_size=64, keep=2),
    _timm("gmixer_12_224", img_size=64, keep=2),
    _timm("mobileone_s0"),
    _timm("repvgg_a0"),
    _timm("repghostnet_050"),
    _timm("repvit_m0_9"),
    _timm("mobilenetv4_conv_small_050"),
    _timm("mobilenetv4_hybrid_medium"),
    _timm("mobilenetv3_small_050"),
    _timm("lcnet_035"),
    _timm("tinynet_e"),
    _timm("efficientnet_es"),
    _timm("test_nfnet"),
    _timm("pit_ti_224", 224, base_dims=(16, 16, 16), depth=(1, 1, 1)),
    _timm("poolformer_s12"),
    _timm("poolformerv2_s12"),
    _timm("convformer_s18"),
    _timm("caformer_s18"),
    _timm("pvt_v2_b0", depths=_D),
    _timm("pvt_v2_b2_li", depths=_D, embed_dims=(16, 32, 40, 64)),
    _timm("regnetx_002"),
    _timm("regnety_002"),
    _timm("regnetz_005"),
    _timm("rexnet_100"),
    _timm("test_resnet"),
    _timm("resnet18"),
    _timm("resnet26d"),
    _timm("resnetv2_50x1_bit"),
    _timm("seresnet18"),
    _timm("ecaresnet26t", layers=(1, 1, 1, 1)),
    _timm("gcresnext26ts"),
    _timm("res2net50_26w_4s", layers=(1, 1, 1, 1)),
    _timm("resnest14d"),
    _timm("skresnet18", layers=(1, 1, 1, 1)),
    _timm("botnet26t_256", img_size=64),
    _timm("halonet26t", 256),
    _timm("lambda_resnet26t"),
    _timm("swin_tiny_patch4_window7_224", 56, img_size=56, **_SMALL),
    _timm("swinv2_tiny_window8_256", img_size=64, window_size=4, **_SMALL),
    _timm("swinv2_cr_tiny_224", img_size=64, depths=_D),
    _timm("tnt_s_patch16_224", img_size=64, depth=2),
    _timm("tresnet_m", layers=(1, 1, 2, 1)),
    _timm("twins_svt_small", img_size=64, depths=_D, embed_dims=_W, num_heads=_H),
    _timm("twins_pcpvt_small", img_size=64, depths=_D, embed_dims=_W, num_heads=_H),
    _timm("visformer_tiny", img_size=64, embed_dim=48, depth=(1, 1, 1)),
    _timm("volo_d1_224", img_size=64),
    _timm("legacy_xception"),
    _timm("xception41"),
    _timm("hiera_tiny_224", 224, stages=_D, embed_dim=16),
    _timm("hieradet_small"),
    _timm("mvitv2_tiny", img_size=64),
    _timm("nextvit_small"),
    _timm("davit_tiny", depths=_D, embed_dims=_W, num_heads=_H),
    _timm("focalnet_tiny_srf"),
    _timm("gcvit_xxtiny", 224),
    _timm("dla46_c"),
    _timm("dla60x_c"),
    _timm("dpn48b"),
    _timm("cspresnet50"),
    _timm("cspdarknet53"),
    _timm("darknet17"),
    _timm("convnext_atto", depths=_D, dims=_W),
    _timm("convnextv2_atto", depths=_D, dims=_W),
    _timm("convmixer_768_32", keep=2),
    _timm("densenet121", block_config=(2, 2, 2, 2)),
    _timm("mambaout_femto", depths=_D, dims=_W),
    _timm("nest_tiny", img_size=64),
    _timm("rdnet_tiny", num_init_features=16, growth_rates=(8, 16, 16, 16, 16, 16, 16)),
    _timm("selecsls42"),
    _timm("sequencer2d_s", layers=(1, 1, 1, 1), embed_dims=(16, 32, 32, 32), hidden_sizes=(4, 8, 8, 8)),
    _timm("shvit_s1"),
    _timm("starnet_s1", base_dim=8, depths=_D),
    _timm("swiftformer_xs", layers=(1, 1, 1, 1), embed_dims=_W),
    _timm("tiny_vit_5m_224", depths=_D, embed_dims=_W, num_heads=_H),
    _timm("ese_vovnet19b_slim_dw"),
    _timm("fasternet_t0"),
    _timm("hgnetv2_b0"),
    _timm("iformer_t"),
    _timm("efficientvim_m1"),
    _timm("inception_v4", 160),
    _timm("vitamin_small_224", img_size=64),
]
