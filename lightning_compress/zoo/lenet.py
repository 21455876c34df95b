"""The two LeNets that compression papers begin with, sized for small pictures."""

from torch import Tensor, nn


class LeNet300(nn.Module):
    """LeNet-300-100: a multilayer perceptron with two hidden layers of 300 and 100 neurons.

    LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998. On 8x8 digits it has
    50,610 parameters.

    Args:
        in_features: number of input values of one sample; the input is flattened.
        num_classes: number of outputs.

    >>> import torch
    >>> LeNet300()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, in_features: int = 64, num_classes: int = 10) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(in_features, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, num_classes)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, num_classes) of a batch (N, ...)."""
        x = self.relu(self.fc1(self.flatten(x)))
        scores: Tensor = self.fc3(self.relu(self.fc2(x)))
        return scores


class LeNet5(nn.Module):
    """LeNet-5 as the Caffe library drew it (20 and 50 channels, pooling, 500 hidden neurons), for small pictures.

    LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998. The kernels are 3x3 with padding,
    since two unpadded 5x5 kernels do not fit into 8x8 pixels.

    Args:
        input_shape: channels, height and width of one picture; height and width at least 4.
        num_classes: number of outputs.

    >>> import torch
    >>> LeNet5()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, input_shape: tuple[int, int, int] = (1, 8, 8), num_classes: int = 10) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, 20, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(50 * (height // 4) * (width // 4), 500)
        self.fc2 = nn.Linear(500, num_classes)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, num_classes) of a batch (N, channels, height, width)."""
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        scores: Tensor = self.fc2(self.relu(self.fc1(self.flatten(x))))
        return scores
