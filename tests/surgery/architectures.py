"""Small networks of the architectures in use, each with an input: what surgery has to get right or to refuse."""

import math

import torch
from torch import nn
from torch.nn import functional

from lightning_compress.zoo.lenet import LeNet5, LeNet300
from lightning_compress.zoo.resnet import SmallResNet


def conv(inputs, outputs, kernel=3, stride=1, groups=1, activation=nn.ReLU):
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([activation()] if activation else []))


def head(width, classes=5):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class Residual(nn.Module):
    """``x + body(x)``, with a projection where the width changes."""

    def __init__(self, body, shortcut=None, last=None):
        super().__init__()
        self.body, self.shortcut, self.last = body, shortcut or nn.Identity(), last or nn.Identity()

    def forward(self, x):
        return self.last(self.shortcut(x) + self.body(x))


def vgg():
    features = [conv(1, 8), nn.MaxPool2d(2), conv(8, 12), conv(12, 12), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(48, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 5))


def bottleneck(inputs, middle, outputs, groups=1):
    body = nn.Sequential(conv(inputs, middle, 1), conv(middle, middle, 3, groups=groups))
    body.extend(conv(middle, outputs, 1, activation=None))
    return Residual(body, None if inputs == outputs else conv(inputs, outputs, 1, activation=None), nn.ReLU())


def bottleneck_resnet():
    return nn.Sequential(conv(1, 8), bottleneck(8, 4, 16), bottleneck(16, 4, 16), head(16))


def resnext():
    return nn.Sequential(conv(1, 8), bottleneck(8, 16, 16, groups=4), bottleneck(16, 16, 16, groups=4), head(16))


def wide_resnet():
    """Pre-activation blocks."""

    def block(width):
        parts = [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)]
        return Residual(nn.Sequential(*parts, nn.ReLU(), nn.Dropout(), nn.Conv2d(width, width, 3, padding=1)))

    return nn.Sequential(nn.Conv2d(1, 16, 3), block(16), block(16), nn.BatchNorm2d(16), nn.ReLU(), head(16))


class SqueezeExcitation(nn.Module):
    def __init__(self, width, middle):
        super().__init__()
        self.squeeze, self.excite = nn.Linear(width, middle), nn.Linear(middle, width)

    def forward(self, x):
        gate = torch.sigmoid(self.excite(functional.relu(self.squeeze(x.mean((2, 3))))))
        return x * gate.view(*gate.shape, 1, 1)


def se_resnet():
    block = nn.Sequential(conv(8, 8), conv(8, 8, activation=None), SqueezeExcitation(8, 4))
    return nn.Sequential(conv(1, 8), Residual(block, last=nn.ReLU()), head(8))


def mobilenet_v1():
    def separable(inputs, outputs):
        return nn.Sequential(conv(inputs, inputs, groups=inputs), conv(inputs, outputs, 1))

    return nn.Sequential(conv(1, 8), separable(8, 12), separable(12, 20), head(20))


def inverted(inputs, middle, outputs, excitation=False):
    body = [conv(inputs, middle, 1, activation=nn.SiLU), conv(middle, middle, 3, groups=middle, activation=nn.SiLU)]
    body += [SqueezeExcitation(middle, 4)] if excitation else []
    body = nn.Sequential(*body, conv(middle, outputs, 1, activation=None))
    return Residual(body) if inputs == outputs else body


def mobilenet_v2():
    return nn.Sequential(conv(1, 8), inverted(8, 24, 8), inverted(8, 24, 12), inverted(12, 24, 12), head(12))


def efficientnet():
    return nn.Sequential(conv(1, 8), inverted(8, 16, 8, True), inverted(8, 16, 12, True), head(12))


class Fire(nn.Module):
    def __init__(self, inputs, squeezed, expanded):
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.one, self.three = nn.Conv2d(squeezed, expanded, 1), nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x):
        x = functional.relu(self.squeeze(x))
        return functional.relu(torch.cat([self.one(x), self.three(x)], 1))


def squeezenet():
    fires = [Fire(8, 4, 6), Residual(Fire(12, 4, 6)), nn.MaxPool2d(2), Fire(12, 4, 8)]
    return nn.Sequential(conv(1, 8), *fires, nn.Conv2d(16, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class DenseNet(nn.Module):
    """Each layer reads all maps before it, through BatchNorm over the concatenation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * depth) for depth in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * depth, 4, 3, padding=1, bias=False) for depth in range(3))
        self.fc = nn.Linear(18, 5)

    def forward(self, x):
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, layer(functional.relu(norm(x)))], 1)
        return self.fc(functional.relu(self.norms[-1](x)).mean((2, 3)))


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv(1, 8)
        self.branches = nn.ModuleList([conv(8, 4, 1), nn.Sequential(conv(8, 4, 1), conv(4, 6)), conv(8, 6, 5)])
        self.pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(8, 4, 1))
        self.head = head(20)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.cat([*(branch(x) for branch in self.branches), self.pooled(x)], 1))


def shuffle(x, groups):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleV1(nn.Module):
    def __init__(self, width, middle, groups):
        super().__init__()
        self.groups = groups
        self.compress = conv(width, middle, 1, groups=groups)
        self.depthwise = conv(middle, middle, 3, groups=middle, activation=None)
        self.expand = conv(middle, width, 1, groups=groups, activation=None)

    def forward(self, x):
        return functional.relu(x + self.expand(self.depthwise(shuffle(self.compress(x), self.groups))))


def shufflenet_v1():
    return nn.Sequential(conv(1, 16), ShuffleV1(16, 16, 2), ShuffleV1(16, 16, 2), head(16))


class ShuffleV2(nn.Module):
    """Half of the channels passes by, the other half is worked on; then both are shuffled."""

    def __init__(self, width):
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(conv(half, half, 1), conv(half, half, 3, groups=half, activation=None))
        self.branch.append(conv(half, half, 1))

    def forward(self, x):
        left, right = x.chunk(2, 1)
        return shuffle(torch.cat([left, self.branch(right)], 1), 2)


class ShuffleV2Down(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        half = outputs // 2
        self.left = nn.Sequential(conv(inputs, inputs, 3, 2, groups=inputs, activation=None), conv(inputs, half, 1))
        self.right = nn.Sequential(conv(inputs, half, 1), conv(half, half, 3, 2, groups=half, activation=None))
        self.right.append(conv(half, half, 1))

    def forward(self, x):
        return shuffle(torch.cat([self.left(x), self.right(x)], 1), 2)


def shufflenet_v2():
    return nn.Sequential(conv(1, 8), ShuffleV2Down(8, 16), ShuffleV2(16), ShuffleV2(16), conv(16, 20, 1), head(20))


def xception():
    def separable(inputs, outputs):
        depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        return nn.Sequential(nn.ReLU(), depthwise, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    entry = Residual(nn.Sequential(separable(8, 12), separable(12, 12)), conv(8, 12, 1, activation=None))
    middle = Residual(nn.Sequential(*(separable(12, 12) for _ in range(3))))
    return nn.Sequential(conv(1, 8), entry, middle, separable(12, 20), head(20))


class ConvNeXtBlock(nn.Module):
    """Depthwise, LayerNorm over the channels last, an MLP and a layer scale."""

    def __init__(self, width):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm, self.scale = nn.LayerNorm(width), nn.Parameter(torch.full((width,), 0.5))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(functional.gelu(self.wide(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext():
    return nn.Sequential(nn.Conv2d(1, 8, 2, 2), ConvNeXtBlock(8), ConvNeXtBlock(8), head(8))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = conv(1, 6)
        self.down = nn.Sequential(nn.MaxPool2d(2), conv(6, 10))
        self.up = nn.ConvTranspose2d(10, 7, 2, stride=2)
        self.out = nn.Sequential(nn.Conv2d(13, 6, 3, padding=1), nn.PReLU(6), nn.Conv2d(6, 2, 1))

    def forward(self, x):
        high = self.enter(x)
        return self.out(torch.cat([self.up(self.down(high)), high], 1))


def autoencoder():
    down = [nn.Conv2d(1, 8, 3, 2, 1), nn.ELU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ELU()]
    up = [nn.ConvTranspose2d(12, 8, 2, 2, groups=2), nn.ELU(), nn.ConvTranspose2d(8, 1, 2, 2)]
    return nn.Sequential(*down, *up)


def super_resolution():
    return nn.Sequential(conv(1, 8), nn.Conv2d(8, 16, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(4, 1, 3, padding=1))


def instance_normed():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.PReLU(8), nn.Conv2d(8, 6, 3), nn.PReLU(), head(6)
    )


def group_normed():
    parts = [nn.Conv2d(1, 12, 3, padding=1), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.GroupNorm(8, 8)]
    return nn.Sequential(*parts, nn.ReLU(), head(8))


def grouped():
    return nn.Sequential(conv(1, 16), conv(16, 32, groups=8), conv(32, 16, groups=4), head(16))


def temporal():
    parts = [nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 8, 3, dilation=2), nn.Sigmoid()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(16, 4))


def volumetric():
    parts = [nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 6, 1, groups=2), nn.MaxPool3d(2)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))


class Attention(nn.Module):
    """Attention of one Linear each for queries, keys and values, as vision transformers write it."""

    def __init__(self, width, heads, fused=False, causal=False):
        super().__init__()
        self.num_heads, self.head_dim, self.causal = heads, width // heads, causal
        self.fused = nn.Linear(width, 3 * width) if fused else None
        self.query, self.key, self.value = (None if fused else nn.Linear(width, width) for _ in range(3))
        self.leave = nn.Linear(width, width)

    def forward(self, x):
        n, t, _ = x.shape
        if self.fused is not None:
            qkv = self.fused(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
            query, key, value = qkv.unbind(0)
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        else:
            layers = (self.query, self.key, self.value)
            query, key, value = (f(x).view(n, t, self.num_heads, self.head_dim).transpose(1, 2) for f in layers)
            scores = query @ key.transpose(-2, -1) / math.sqrt(self.head_dim)
            if self.causal:
                scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), float("-inf"))
            mixed = scores.softmax(-1) @ value
        return self.leave(mixed.transpose(1, 2).reshape(n, t, -1))


class Block(nn.Module):
    """A transformer's block with normalisation first."""

    def __init__(self, width, attention):
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        y = self.norm1(x)
        y = self.attention(y, y, y)[0] if isinstance(self.attention, nn.MultiheadAttention) else self.attention(y)
        x = x + y
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.patches = nn.Conv2d(1, 12, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 12)), nn.Parameter(torch.randn(1, 5, 12))
        self.blocks, self.norm = nn.Sequential(*(Block(12, make()) for _ in range(2))), nn.LayerNorm(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


class GPT(nn.Module):
    """A decoder with the embedding tied to the output."""

    def __init__(self, tied=True):
        super().__init__()
        self.words, self.places = nn.Embedding(17, 12), nn.Embedding(8, 12)
        self.blocks = nn.Sequential(*(Block(12, Attention(12, 3, fused=True, causal=True)) for _ in range(2)))
        self.norm, self.out = nn.LayerNorm(12), nn.Linear(12, 17, bias=False)
        if tied:
            self.out.weight = self.words.weight

    def forward(self, words):
        x = self.words(words) + self.places(torch.arange(words.shape[1]))
        return self.out(self.norm(self.blocks(x)))


def encoder():
    layer = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)
    return nn.Sequential(nn.Linear(6, 12), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


class Mixer(nn.Module):
    """Layers across positions and layers across channels in turn."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 10, 4, 4)
        self.across, self.back = nn.Linear(4, 8), nn.Linear(8, 4)
        self.wide, self.narrow, self.head = nn.Linear(10, 20), nn.Linear(20, 10), nn.Linear(10, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2)
        x = (x + self.back(functional.gelu(self.across(x)))).transpose(1, 2)
        return self.head((x + self.narrow(functional.gelu(self.wide(x)))).mean(1))


class Windowed(nn.Module):
    """Attention within shifted windows, with a table of relative positions."""

    def __init__(self):
        super().__init__()
        self.stem, self.attention, self.head = nn.Conv2d(1, 12, 1), Attention(12, 3, fused=True), nn.Linear(12, 5)

    def forward(self, x):
        x = torch.roll(self.stem(x).permute(0, 2, 3, 1), (2, 2), (1, 2))
        n, h, w, c = x.shape
        windows = x.view(n, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)
        y = self.attention(windows).view(n, h // 4, w // 4, 4, 4, c).transpose(2, 3).reshape(n, h, w, c)
        return self.head((x + y).mean((1, 2)))


class Recurrent(nn.Module):
    def __init__(self, kind, last=False, **arguments):
        super().__init__()
        self.enter, self.last = nn.Linear(6, 8), last
        self.rnn = kind(8, 7, batch_first=True, **arguments)
        self.leave = nn.Linear(7 * (1 + self.rnn.bidirectional), 3)

    def forward(self, x):
        outputs, state = self.rnn(torch.relu(self.enter(x)))
        state = state[0] if isinstance(state, tuple) else state
        read = torch.cat(list(state[-1 - self.rnn.bidirectional :]), -1) if self.last else outputs
        return self.leave(read)


class Translator(nn.Module):
    """A GRU reads, another one writes from its state."""

    def __init__(self):
        super().__init__()
        self.words, self.encoder = nn.Embedding(11, 6), nn.GRU(6, 9, batch_first=True)
        self.decoder, self.out = nn.GRU(6, 9, batch_first=True), nn.Linear(9, 11)

    def forward(self, words):
        x = self.words(words)
        return self.out(self.decoder(x, self.encoder(x)[1])[0])


class TiedEmbedding(nn.Module):
    """The output layer is the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.wide, self.narrow = nn.Embedding(11, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.decoder = nn.Linear(8, 11, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, words):
        x = self.embedding(words).mean(1)
        return self.decoder(x + self.narrow(torch.relu(self.wide(x))))


PICTURES, SERIES = (4, 1, 8, 8), (3, 5, 6)
WORDS = "words"
ARCHITECTURES = {
    "lenet_300_100": (LeNet300, PICTURES),
    "lenet_5": (LeNet5, PICTURES),
    "vgg": (vgg, PICTURES),
    "resnet": (SmallResNet, PICTURES),
    "bottleneck_resnet": (bottleneck_resnet, PICTURES),
    "wide_resnet": (wide_resnet, PICTURES),
    "resnext": (resnext, PICTURES),
    "se_resnet": (se_resnet, PICTURES),
    "mobilenet_v1": (mobilenet_v1, PICTURES),
    "mobilenet_v2": (mobilenet_v2, PICTURES),
    "efficientnet": (efficientnet, PICTURES),
    "squeezenet": (squeezenet, PICTURES),
    "densenet": (DenseNet, PICTURES),
    "inception": (Inception, PICTURES),
    "shufflenet_v1": (shufflenet_v1, PICTURES),
    "shufflenet_v2": (shufflenet_v2, PICTURES),
    "xception": (xception, PICTURES),
    "convnext": (convnext, PICTURES),
    "unet": (UNet, PICTURES),
    "autoencoder": (autoencoder, PICTURES),
    "super_resolution": (super_resolution, PICTURES),
    "instance_norm_prelu": (instance_normed, PICTURES),
    "group_norm": (group_normed, PICTURES),
    "grouped_convolutions": (grouped, PICTURES),
    "temporal_convolutions": (temporal, (4, 2, 12)),
    "volumetric_convolutions": (volumetric, (2, 1, 4, 4, 4)),
    "vit_multihead_attention": (
        lambda: VisionTransformer(lambda: nn.MultiheadAttention(12, 3, batch_first=True)),
        PICTURES,
    ),
    "vit_query_key_value": (lambda: VisionTransformer(lambda: Attention(12, 3)), PICTURES),
    "vit_fused_attention": (lambda: VisionTransformer(lambda: Attention(12, 3, fused=True)), PICTURES),
    "transformer_encoder": (encoder, SERIES),
    "windowed_attention": (Windowed, PICTURES),
    "gpt": (GPT, WORDS),
    "mlp_mixer": (Mixer, PICTURES),
    "lstm": (lambda: Recurrent(nn.LSTM), SERIES),
    "bilstm_two_layers": (lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), SERIES),
    "bilstm_last_state": (lambda: Recurrent(nn.LSTM, last=True, bidirectional=True), SERIES),
    "gru": (lambda: Recurrent(nn.GRU, num_layers=2), SERIES),
    "gru_translator": (Translator, WORDS),
    "rnn": (lambda: Recurrent(nn.RNN, bidirectional=True), SERIES),
    "tied_embedding": (TiedEmbedding, WORDS),
}


def build(name):
    """The network as after some training, and an input."""
    torch.manual_seed(0)
    make, shape = ARCHITECTURES[name]
    network = make()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # one gamma negative
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
        norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
        if isinstance(module, norms) and module.weight is not None:
            nn.init.uniform_(module.weight, -1, 2)
            nn.init.normal_(module.bias)
    return network, torch.randint(11, (4, 6)) if shape == WORDS else torch.randn(shape)
