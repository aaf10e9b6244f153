// An object store for benchmarks: a directory over HTTP on loopback, path-style as S3, with a first-byte latency and a
// bandwidth cap for each connection. Keep-alive, Range, HEAD; signatures are not looked at. GET /-/stats says how many
// requests and bytes there were since the last such question.
//
//	origin -root DIR -latency 30ms -spread 0.25 -rate 90000000    prints its port
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"math/rand"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const piece = 128 * 1024

var (
	root    = flag.String("root", ".", "directory of buckets")
	latency = flag.Duration("latency", 30*time.Millisecond, "median time to the first byte")
	spread  = flag.Float64("spread", 0.25, "sigma of the log-normal latency")
	rate    = flag.Float64("rate", 90e6, "bytes a second of a connection")
	seed    = flag.Int64("seed", 1, "of the latencies")

	gets, sent atomic.Int64
	lock       sync.Mutex
	random     *rand.Rand
)

func delay() time.Duration {
	lock.Lock()
	defer lock.Unlock()
	return time.Duration(float64(*latency) * math.Exp(*spread*random.NormFloat64()))
}

func serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/-/stats" {
		fmt.Fprintf(w, `{"gets": %d, "bytes": %d}`, gets.Swap(0), sent.Swap(0))
		return
	}
	began := time.Now()
	time.Sleep(delay())
	file, err := os.Open(filepath.Join(*root, filepath.Clean("/"+r.URL.Path)))
	if err != nil {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, "<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>")
		return
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || info.IsDir() || (r.Method != "GET" && r.Method != "HEAD") {
		http.Error(w, "no object", http.StatusNotFound)
		return
	}
	start, end, status := int64(0), info.Size(), http.StatusOK
	if text, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
		first, last, _ := strings.Cut(text, "-")
		if value, err := strconv.ParseInt(first, 10, 64); err == nil {
			start = value
		}
		if value, err := strconv.ParseInt(last, 10, 64); err == nil && value+1 < end {
			end = value + 1
		}
		status = http.StatusPartialContent
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, end-1, info.Size()))
	}
	head := w.Header()
	head.Set("Content-Type", "binary/octet-stream")
	head.Set("Content-Length", strconv.FormatInt(end-start, 10))
	head.Set("ETag", fmt.Sprintf(`"%x-%x"`, info.ModTime().UnixNano(), info.Size()))
	head.Set("Last-Modified", info.ModTime().UTC().Format(http.TimeFormat))
	head.Set("Accept-Ranges", "bytes")
	w.WriteHeader(status)
	gets.Add(1)
	if r.Method == "HEAD" {
		return
	}
	if _, err := file.Seek(start, io.SeekStart); err != nil {
		return
	}
	for begun, done := began.Add(time.Since(began)), int64(0); done < end-start; {
		count, err := io.CopyN(w, file, min(piece, end-start-done))
		done += count
		sent.Add(count)
		if err != nil {
			return
		}
		time.Sleep(time.Until(begun.Add(time.Duration(float64(done) / *rate * 1e9))))
	}
}

func main() {
	flag.Parse()
	random = rand.New(rand.NewSource(*seed))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	log.Fatal(http.Serve(listener, http.HandlerFunc(serve)))
}
