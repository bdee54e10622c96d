// Package interop holds tests only: images that go through ocibridge into an
// ostree repository, against what the real ostree-ext makes of them.
package interop
