package composefs

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/pkg/fsverity"
)

func imageOf(t *testing.T, dump string, o ImageOptions) ([]byte, ImageInfo) {
	t.Helper()
	tree, err := ReadDump(strings.NewReader(dump))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	info, err := WriteImage(&b, tree, o)
	if err != nil {
		t.Fatal(err)
	}
	if int64(b.Len()) != info.Size {
		t.Errorf("the image has %d bytes, WriteImage says %d", b.Len(), info.Size)
	}
	return b.Bytes(), info
}

func TestVectors(t *testing.T) {
	const root = "/ 0 40755 2 0 0 0 0.0 - - -\n"
	for _, tc := range []struct {
		name   string
		o      ImageOptions
		digest string
	}{
		{"version 0", V0, "8f589e8f57ecb88823736b0d857ddca1e1068a23e264fad164b28f7038eb3682"},
		{"default", Default, "8f589e8f57ecb88823736b0d857ddca1e1068a23e264fad164b28f7038eb3682"},
		{"version 1", V1, "14a26c957c84f6eb774b91205476adc13196c7c33b9dd97d08d43725ecb90b63"},
	} {
		if _, info := imageOf(t, root, tc.o); info.Digest.String() != tc.digest {
			t.Errorf("%s: the empty tree has digest %s, want %s", tc.name, info.Digest, tc.digest)
		}
	}
	v := fsverity.New(SHA256)
	if d := v.Sum().String(); !strings.HasPrefix(d, "3d248ca5") {
		t.Errorf("fs-verity digest of an empty file: %s", d)
	}
	v.Reset()
	_, _ = io.WriteString(v, "hello world")
	if d := v.Sum().String(); !strings.HasPrefix(d, "1e2eaa42") {
		t.Errorf("fs-verity digest of hello world: %s", d)
	}
}
