//go:build !amd64

package fsverity

const (
	wideFrom = 3
	haveWide = false
)

func appendSums512(_, _ []byte) []byte { panic("fsverity: no AVX-512 here") }
