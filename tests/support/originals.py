"""Small versions of published architectures, with the names of their checkpoints."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Change every weight of a module, so that a missing or misplaced weight shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            around = (
                1.0 if name.endswith(("gamma", "gamma_1", "gamma_2")) or "norm" in name else 0.0
            )
            parameter.copy_(around + 0.3 * noise)
    return module.eval()


def heads_apart(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | float = 0.0) -> Tensor:
    q, k, v = (heads_apart(x, heads) for x in (q, k, v))
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + bias
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class Patches(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class DinoAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
            heads,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(attend(*self.qkv(x).chunk(3, -1), self.heads))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DinoBlock(nn.Module):
    def __init__(
        self, width: int, heads: int, feed_forward: Callable[[int, int], nn.Module]
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = DinoAttention(width, heads), feed_forward(width, 4 * width)
        self.ls1, self.ls2 = Scale(width), Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class DinoV2(nn.Module):
    """DINOv2 (Oquab et al., 2023) with registers (Darcet et al., 2023).

    It maps [N, 3, S, S] to the normalised class token.

    With `chunks`, blocks are named blocks.CHUNK.INDEX, the index counting through all chunks.
    """

    def __init__(
        self,
        grid: int = 4,
        *,
        width: int = 32,
        depth: int = 4,
        heads: int = 2,
        patch: int = 14,
        registers: int = 0,
        chunks: int = 0,
        feed_forward: Callable[[int, int], nn.Module] = Mlp,
    ) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, width))
        self.patch_embed = Patches(width, patch)
        blocks = [DinoBlock(width, heads, feed_forward) for _ in range(depth)]
        length = depth // chunks if chunks else 0
        self.blocks = nn.ModuleList(
            [
                nn.ModuleList(
                    [*(nn.Identity() for _ in range(start)), *blocks[start : start + length]]
                )
                for start in range(0, depth, length)
            ]
            if chunks
            else blocks
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.chunked = bool(chunks)

    def forward(self, x: Tensor) -> Tensor:
        x = (
            torch.cat((self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)), 1)
            + self.pos_embed
        )
        if hasattr(self, "register_tokens"):
            x = torch.cat((x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]), 1)
        for block in [b for chunk in self.blocks for b in chunk] if self.chunked else self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


class BiasedAttention(nn.Module):
    """Attention with biases of query and value, and optionally a relative position bias."""

    def __init__(self, width: int, heads: int, grid: int | None) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = (
            nn.Linear(width, 3 * width, bias=False),
            nn.Linear(width, width),
            heads,
        )
        self.q_bias, self.v_bias = (
            nn.Parameter(torch.zeros(width)),
            nn.Parameter(torch.zeros(width)),
        )
        if grid:
            self.relative_position_bias_table = nn.Parameter(
                torch.zeros((2 * grid - 1) ** 2 + 3, heads)
            )
            self.register_buffer("relative_position_index", distances(grid))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        bias: Tensor | float = 0.0
        if hasattr(self, "relative_position_bias_table"):
            bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        return self.proj(attend(q + self.q_bias, k, v + self.v_bias, self.heads, bias))


def distances(grid: int) -> Tensor:
    """Return the index of the bias of two tokens: one per offset, three for class tokens."""
    side, tokens = 2 * grid - 1, grid**2 + 1
    index = torch.zeros(tokens, tokens, dtype=torch.long)
    for one in range(grid**2):
        for other in range(grid**2):
            down, right = one // grid - other // grid, one % grid - other % grid
            index[one + 1, other + 1] = (down + grid - 1) * side + right + grid - 1
    index[0], index[:, 0], index[0, 0] = side**2, side**2 + 1, side**2 + 2
    return index


class CaeBlock(nn.Module):
    def __init__(self, width: int, heads: int, grid: int | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = BiasedAttention(width, heads, grid), Mlp(width, 4 * width)
        self.gamma_1, self.gamma_2 = (
            nn.Parameter(torch.ones(width)),
            nn.Parameter(torch.ones(width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        return x + self.gamma_2 * self.mlp(self.norm2(x))


class PanDerm(nn.Module):
    """PanDerm's encoder (Yan et al., 2025), built of BEiT's blocks.

    It maps [N, 3, S, S] to the normalised class token.

    `mean_pooled` is its fine-tuned form, whose patches are averaged and then normalised.
    """

    def __init__(
        self,
        grid: int = 4,
        *,
        width: int = 32,
        depth: int = 3,
        heads: int = 2,
        relative: bool = False,
        mean_pooled: bool = False,
    ) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if not relative:
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.patch_embed = Patches(width, 16)
        self.blocks = nn.ModuleList(
            [CaeBlock(width, heads, grid if relative else None) for _ in range(depth)]
        )
        if mean_pooled:
            self.fc_norm = nn.LayerNorm(width, eps=1e-6)
        else:
            self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)), 1)
        if hasattr(self, "pos_embed"):
            x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.fc_norm(x[:, 1:].mean(1)) if hasattr(self, "fc_norm") else self.norm(x)[:, 0]
