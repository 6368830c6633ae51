"""The sizes at which a training step is measured, and their names."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Setting:
    """Sizes of one step."""

    widths: tuple[int, ...] = (576, 640)
    num_latents: int = 16_384
    batch: int = 1_024
    k: int = 64
    auxk: bool = False
    """With the auxiliary loss, and half the dictionary dead."""
    arch: str = "crosscoder"
    keep: bool = False
    """The process keeps freed memory, as the training command has it, whatever the variant."""

    def __str__(self) -> str:
        extra = (", AuxK, half dead" if self.auxk else "") + (", DFC" if self.arch == "dfc" else "")
        extra += ", freed memory kept" if self.keep else ""
        widths = "+".join(map(str, self.widths))
        return f"{widths}, M={self.num_latents:,}, batch {self.batch:,}, k={self.k}{extra}"

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read `WIDTH+WIDTH/M/BATCH/K`, with `/auxk` or `/dfc` or both behind it."""
        try:
            widths, num_latents, batch, k, *options = text.split("/")
            if not set(options) <= {"auxk", "dfc"}:
                raise ValueError
            arch = "dfc" if "dfc" in options else "crosscoder"
            sizes = tuple(int(width) for width in widths.split("+"))
            return cls(sizes, int(num_latents), int(batch), int(k), "auxk" in options, arch)
        except ValueError:
            raise ValueError(
                f"'{text}' is neither one of {', '.join(SIZES)} nor of the form "
                f"576+640/16384/1024/64[/auxk][/dfc] (widths, latents, batch, k)."
            ) from None


AUXK_OFF = Setting()
AUXK_ON = Setting(auxk=True)
NARROW = Setting(widths=(256, 256), k=20)
PAPER = Setting((4096, 4096), 131_072, 2_048, 200)
LATENTS = tuple(replace(AUXK_OFF, num_latents=m) for m in (2_048, 4_096, 8_192, 16_384))
SIZES: dict[str, tuple[Setting, ...]] = {
    "auxk_off": (AUXK_OFF,),
    "auxk_on": (AUXK_ON,),
    "narrow": (NARROW,),
    "dfc": (replace(AUXK_OFF, arch="dfc"),),
    "kept": tuple(replace(one, keep=True) for one in (AUXK_OFF, AUXK_ON, NARROW)),
    "latents": LATENTS,
    "batch": tuple(replace(AUXK_OFF, batch=n) for n in (256, 512, 1_024, 2_048)),
    "k": tuple(replace(AUXK_OFF, k=k) for k in (16, 32, 64, 128)),
    "paper": (PAPER,),
}
SCALING = ("latents", "batch", "k")
QUICK = Setting(num_latents=2_048, batch=256, k=32)
QUICK_SIZES: dict[str, tuple[Setting, ...]] = {
    "auxk_off": (QUICK,),
    "auxk_on": (replace(QUICK, auxk=True),),
    "narrow": (Setting((256, 256), 2_048, 256, 20),),
    "dfc": (replace(QUICK, arch="dfc"),),
    "latents": (replace(QUICK, num_latents=1_024), QUICK),
}
