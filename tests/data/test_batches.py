import torch

from inat_ft.data.batches import ImageInput

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Prepared(torch.nn.Module):
    def __init__(self, prepare: ImageInput) -> None:
        super().__init__()
        self.prepare = prepare

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.prepare(images, torch.empty(0))


def _expected(images: torch.Tensor) -> torch.Tensor:
    scaled = images.permute(0, 3, 1, 2).to(torch.float32).div(255)
    return (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def test_normalization_is_the_same_after_torch_export():
    width = 37  # a size that no other test uses: nothing can have been cached before
    images = torch.randint(0, 256, (2, width, width, 3), dtype=torch.uint8)
    prepare = ImageInput(MEAN, STD)
    program = torch.export.export(_Prepared(prepare), (images,))
    made = prepare(images, torch.empty(0))
    assert type(made) is torch.Tensor
    assert torch.equal(made, _expected(images))
    assert torch.equal(program.module()(images), made)


def test_normalization_in_inference_mode_does_not_affect_training():
    images = torch.randint(0, 256, (2, 41, 41, 3), dtype=torch.uint8)
    prepare = ImageInput(MEAN, STD)
    with torch.inference_mode():
        prepare(images, torch.empty(0))
    weight = torch.ones(1, requires_grad=True)
    made = prepare(images, torch.empty(0))
    assert not made.is_inference()
    (made * weight).sum().backward()
    assert torch.equal(made, _expected(images))
