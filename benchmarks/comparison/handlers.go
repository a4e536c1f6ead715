// The handlers of app.py for Go's net/http, and the graceful shutdown of its documentation.
package main

import (
	"bufio"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	server := http.Server{Addr: "127.0.0.1:" + os.Args[1], Handler: http.HandlerFunc(handle)}
	done := make(chan struct{})
	go func() {
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		<-stop
		server.Shutdown(context.Background())
		close(done)
	}()
	if len(os.Args) > 2 {
		server.ListenAndServeTLS(os.Args[2], os.Args[3])
	} else {
		server.ListenAndServe()
	}
	<-done
}

func handle(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	note := func(text string) {
		line, _ := json.Marshal(map[string]any{"tag": r.URL.RawQuery, "after": time.Since(began).Seconds(), "text": text})
		notes, _ := os.OpenFile(os.Getenv("COMPARISON_NOTES"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		defer notes.Close()
		notes.Write(append(line, '\n'))
	}
	parts := strings.Split(r.URL.Path, "/")
	switch parts[1] {
	case "":
		fmt.Fprint(w, "Hello, world!")
	case "wait":
		seconds, _ := strconv.ParseFloat(parts[2], 64)
		time.Sleep(time.Duration(seconds * float64(time.Second)))
		fmt.Fprint(w, "done")
	case "gone":
		time.Sleep(time.Second)
		note(fmt.Sprint("context: ", r.Context().Err()))
		_, err := fmt.Fprint(w, "done")
		note(fmt.Sprint("write: ", err))
	case "receive":
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		note("context done")
	case "stream":
		for range 30 {
			_, err := fmt.Fprint(w, "x")
			if err == nil {
				err = http.NewResponseController(w).Flush()
			}
			if err != nil {
				note(fmt.Sprint("write: ", err))
				return
			}
			time.Sleep(time.Second / 10)
		}
		note("write: no error")
	case "flood":
		mebibytes, _ := strconv.Atoi(parts[2])
		chunk := make([]byte, 1<<16)
		for number := range mebibytes * 16 {
			note(fmt.Sprint(number / 16))
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	case "websocket":
		conn, stream, _ := w.(http.Hijacker).Hijack()
		defer conn.Close()
		key := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
			"Sec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(key[:]))
		io.Copy(io.Discard, bufio.NewReader(stream))
		note("read: end of file")
	}
}
