"""The sets that prefloop knows. Their texts are not part of it: each is fetched from where it is published."""

from .record import PromptSet

_GITHUB = "https://raw.githubusercontent.com"
_COMPBENCH = ("3d_spatial", "color", "complex", "non_spatial", "numeracy", "shape", "spatial", "texture")
_HPS_STYLES = ("anime", "concept-art", "paintings", "photo")
_PICKAPIC = "a3592a4f2e6adb7646ef56f3bb18e2968348a163"

KNOWN = (
    PromptSet(
        name="parti",
        source=f"{_GITHUB}/google-research/parti/{{revision}}",
        files=("PartiPrompts.tsv",),
        revision="2c99f6652cbc7f0d0441aa91f4c7e7055bcb0071",
        n_prompts=1632,
        sha256="fab29e41bb512a169b56acab4cf2a41dcb675e285df2efcde6640c7dd3c440eb",
        tags=("Category", "Challenge"),
        license="Apache-2.0",
        citation="PartiPrompts, arXiv 2206.10789",
    ),
    PromptSet(
        name="geneval",
        source=f"{_GITHUB}/djghosh13/geneval/{{revision}}",
        files=("prompts/evaluation_metadata.jsonl",),
        revision="d927da8e42fde2b1b5cd743da4df5ff83c1654ff",
        n_prompts=553,
        sha256="5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
        tags=("tag",),
        license="MIT",
        citation="GenEval, arXiv 2310.11513",
    ),
    PromptSet(
        name="dpg",
        source="https://codeload.github.com/TencentQQGYLab/ELLA/zip/{revision}",
        files=("*/dpg_bench/prompts/*.txt",),
        archive=True,
        revision="1cf31cea8230376ea51012b61352e61c402f64ed",
        n_prompts=1065,
        sha256="317085a5cddf9620595bb38cba7b9fa25ecfb081846bc91b840c98366d46f56e",
        license="Apache-2.0",
        citation="DPG-Bench of ELLA, arXiv 2403.05135",
    ),
    PromptSet(
        name="t2i-compbench",
        source=f"{_GITHUB}/Karine-Huang/T2I-CompBench/{{revision}}/examples/dataset",
        files=tuple(f"{name}_val.txt" for name in _COMPBENCH),
        revision="3310c2f1f43cc173505fc40cf6cc70762f090c07",
        n_prompts=2400,
        sha256="9d1f988ed9e0524c3324a1385f0c2b74fcdf90b32e9fa623497bbc17bcf9a52f",
        file_tag="category",
        license="MIT",
        citation="T2I-CompBench++, arXiv 2307.06350",
    ),
    # shunk031/DrawBench has a script instead of data, which the library datasets no longer runs; this is its result
    PromptSet(
        name="drawbench",
        source="Jialuo21/DrawBench",
        files=("data/test-00000-of-00001.parquet",),
        revision="870c4ef7e6c67eafa7c6e26ba79b7c0d52c9cb16",
        n_prompts=200,
        sha256="951d1d0162ff983840f0dc662c52a8b73a62d3a26db87294f43641fda739fe8e",
        prompt="prompts",
        tags=("category",),
        citation="DrawBench of Imagen, arXiv 2205.11487",
    ),
    # 3172 different ones: the first of equal prompts gives the style
    PromptSet(
        name="hpsv2",
        source="zhwang/HPDv2",
        files=tuple(f"benchmark/{style}.json" for style in _HPS_STYLES),
        revision="260dbde75ab1c68e86d32a8e7739f1b49b100578",
        n_prompts=3200,
        file_tag="style",
        license="Apache-2.0 (code)",
        citation="HPS v2, arXiv 2306.09341",
    ),
    PromptSet(
        name="pickapic-test",
        source="yuvalkirstain/pickapic_v1_no_images",
        files=("data/test_unique-00000-of-00001-73a51cbb6488571d.parquet",),
        revision=_PICKAPIC,
        n_prompts=500,
        prompt="caption",
        citation="Pick-a-Pic, arXiv 2305.01569",
    ),
    PromptSet(
        name="pickapic-validation",
        source="yuvalkirstain/pickapic_v1_no_images",
        files=("data/validation_unique-00000-of-00001-847ed34b90bbafc3.parquet",),
        revision=_PICKAPIC,
        n_prompts=500,
        prompt="caption",
        citation="Pick-a-Pic, arXiv 2305.01569",
    ),
)
